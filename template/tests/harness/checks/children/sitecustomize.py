"""Begins each process of Python that tests start: it stays on this machine, as they do.

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


def _watch(reached: str, postgres: list[str]) -> None:
    file = os.path.join(os.path.dirname(_HERE), "addresses.py")
    addresses: Any = type(sys)("_tests_harness_addresses")
    SourceFileLoader(addresses.__name__, file).exec_module(addresses)
    pairs = (pair.rsplit(":", 1) for pair in reached.split())
    allowed = {(host, int(port) if port else None) for host, port in pairs}
    own, others = {*postgres}, {int(port) for port in postgres if port.isdecimal()}
    if any(host for host, _ in allowed):
        import socket

        socket.getaddrinfo = addresses.remembering(socket.getaddrinfo)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith("socket."):
            return
        where = addresses.asked(event, arguments)
        if where and not addresses.may_be_reached(*where, allowed):
            host, port = where
            raise OSError(
                errno.ENETUNREACH,
                f"tests don't leave this machine, and {host}{'' if port is None else f':{port}'} is not "
                "among harness_allowed_connections in pyproject.toml",
            )

        if another := addresses.another_postgres(event, arguments, own, others):
            raise OSError(errno.ECONNREFUSED, f"the Postgres at {another} is not the tests'")

    sys.addaudithook(audit)


if "HARNESS_REACHED" in os.environ:
    _watch(os.environ["HARNESS_REACHED"], os.environ.get("HARNESS_POSTGRES", "").split("\n"))

# The one that Python would have found without this.
_next = PathFinder.find_spec(__name__, [p for p in sys.path if os.path.abspath(p) != _HERE])
if _next and _next.loader:
    _next.loader.exec_module(sys.modules[__name__])
