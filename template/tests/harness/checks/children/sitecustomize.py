"""Begins each process of Python that tests start: it stays on this machine, finds modules, and keeps
nothing in pools, as they do.

Python imports a module of this name before anything else; PYTHONPATH, which `offline.py` sets, lets
it find this one. No part of the package.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader

TYPE_CHECKING = False  # typing is half of what this costs
if TYPE_CHECKING:
    from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))


def _of_the_harness(file: str) -> Any:
    """A file of the harness, which needs nothing else of it."""
    module: Any = type(sys)("_tests_harness_" + os.path.basename(file)[:-3])
    path = os.path.join(os.path.dirname(os.path.dirname(_HERE)), file)
    SourceFileLoader(module.__name__, path).exec_module(module)
    return module


def _keep_nothing(sqlalchemy: Any) -> None:
    if sqlalchemy.__version__ >= "2":  # a program of another environment may have an older one
        _of_the_harness("isolation/pools.py").watch()


def _watch(reached: str, postgres: list[str]) -> None:
    addresses = _of_the_harness("checks/addresses.py")
    pairs = (pair.rsplit(":", 1) for pair in reached.split())
    allowed = {(host, int(port) if port else None) for host, port in pairs}
    own, others = {*postgres}, {int(port) for port in postgres if port.isdecimal()}
    if any(host for host, _ in allowed):
        import socket

        socket.getaddrinfo = addresses.remembering(socket.getaddrinfo)

    def refuse(address: str) -> None:
        raise OSError(
            errno.ECONNREFUSED,
            f"the server at {address} is not the tests', and not "
            "among harness_allowed_connections in pyproject.toml",
        )

    def check(host: str, port: int | None) -> None:
        address = addresses.name(host, port)
        if not addresses.may_be_reached(host, port, allowed):
            raise OSError(
                errno.ENETUNREACH,
                f"tests don't leave this machine, and {address} is not "
                "among harness_allowed_connections in pyproject.toml",
            )
        if port in others and addresses.is_unnamed(host, port, allowed):
            refuse(address)

    def check_server(host: str, port: int) -> None:
        check(host, port)
        if addresses.is_strangers(host, port, allowed):
            refuse(addresses.name(host, port))

    def check_socket(path: str) -> None:
        if not addresses.is_own_socket(path, own):
            refuse(path)

    def check_redis_socket(path: str) -> None:
        if addresses.is_strangers_socket(path, own):
            refuse(path)

    def check_libpq(parameters: dict[str, Any]) -> None:
        addresses.ask_of_libpq(parameters, check_server, check_socket)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith("socket."):
            return
        if where := addresses.asked(event, arguments):
            check(*where)
        elif path := addresses.asked_socket(event, arguments):
            check_socket(path)

    watches = {
        "asyncpg.connect_utils": lambda module: addresses.watch_asyncpg(module, check_server),
        "psycopg": lambda module: addresses.watch_psycopg(module, check_libpq),
        "psycopg2": lambda module: addresses.watch_psycopg2(module, check_libpq),
        "sqlalchemy": _keep_nothing,
    }
    if "HARNESS_REDIS" in os.environ:
        for name in addresses.REDIS:
            watches[name] = lambda module: addresses.watch_redis(
                module, check_server, check_redis_socket
            )
    sys.meta_path.insert(0, addresses.Finder(watches))
    sys.addaudithook(audit)


if "HARNESS_REACHED" in os.environ:
    _watch(os.environ["HARNESS_REACHED"], os.environ.get("HARNESS_POSTGRES", "").split("\n"))

# Behind all others, where they hide none of Python's own modules.
sys.path += filter(None, os.environ.get("HARNESS_PYTHONPATH", "").split(os.pathsep))

# The one that Python would have found without this.
_next = PathFinder.find_spec(__name__, [p for p in sys.path if os.path.abspath(p) != _HERE])
if _next and _next.loader:
    _next.loader.exec_module(sys.modules[__name__])
