"""Unit tests are offline: one that reaches for Postgres or Redis fails, and is told why.

Most drivers connect through `socket`; psycopg does it in C, so its own function is watched too,
from the moment it is imported.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from ..environment import PORT, Environment
from ..errors import HarnessError
from ..servers.guard import REDIS_PORT, read

_offline = False
_attempted = False


class UnitTestConnectedError(HarnessError):
    """A test marked `unit` reached for a server."""

    def __init__(self) -> None:
        super().__init__(
            "This test is marked unit, and connected to a database or to Redis. Mark it "
            "@pytest.mark.integration instead: then it gets a seeded database and a Redis of its own."
        )


@contextmanager
def offline(value: bool = True) -> Iterator[None]:
    """Let connections to servers fail for a while, or, with False, let the harness itself connect."""
    global _offline, _attempted  # noqa: PLW0603 - sockets know nothing of tests
    before, _offline = _offline, value
    if value:
        _attempted = False
    try:
        yield
    finally:
        _offline = before


def attempted() -> bool:
    """Whether something tried to connect since `offline()` began, whatever it made of the failure."""
    return _attempted


def _refuse() -> None:
    """Raise if servers are out of reach at present."""
    global _attempted  # noqa: PLW0603
    if _offline:
        _attempted = True
        raise UnitTestConnectedError


def install(environment: Environment) -> None:
    """Watch the ways to a server, for the rest of the process."""
    targets = _targets(environment)
    _watch(socket.socket, "connect", targets)
    _watch(socket.socket, "connect_ex", targets)
    if "psycopg" in sys.modules:
        _watch_psycopg(sys.modules["psycopg"])
    else:
        sys.meta_path.insert(0, _PsycopgFinder())


def _watch(owner: Any, name: str, targets: set[Any]) -> None:
    connect = getattr(owner, name)

    def watched(self: socket.socket, address: Any) -> Any:
        if _offline and _is_server(address, targets):
            self.close()  # who tried to connect expects other errors, and would leave it open
            _refuse()
        return connect(self, address)

    setattr(owner, name, watched)


def _is_server(address: Any, targets: set[Any]) -> bool:
    if isinstance(address, tuple):
        return address[1] in targets
    path = os.fsdecode(bytes(address) if isinstance(address, bytearray) else address)
    name = os.path.basename(path)
    return path in targets or ".s.PGSQL." in name or "redis" in name or "valkey" in name


def _targets(environment: Environment) -> set[Any]:
    """Ports and sockets of the servers that a test may reach by mistake."""
    urls = (
        environment.external_url,
        environment.external_redis_url,
        environment.application_url,
        environment.application_redis_url,
    )
    addresses = [address for address in map(read, filter(None, urls)) if address]
    known = {name for address in addresses for server in address.servers for name in server}
    return {*known, PORT, REDIS_PORT, str(environment.redis_socket)}


class _PsycopgFinder(MetaPathFinder):
    """Watches psycopg once somebody imports it; until then it costs nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "psycopg":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_watch(module: ModuleType) -> None:
                load(module)
                _watch_psycopg(module)

            spec.loader.exec_module = load_and_watch  # type: ignore[method-assign]
        return spec


def _watch_psycopg(module: ModuleType) -> None:
    connect = module.generators.connect

    def watched(*args: Any, **kwargs: Any) -> Any:
        _refuse()
        return connect(*args, **kwargs)

    module.generators.connect = watched
