"""Unit tests are offline: one that reaches for Postgres or Redis fails, and is told why.

Most drivers connect through `socket`; psycopg does it in C, so its own function is watched too,
from the moment it is imported.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from tests.harness.environment import PORT, Environment
from tests.harness.errors import HarnessError

_REDIS_PORT = 6379

_offline = False


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
    global _offline  # noqa: PLW0603 - sockets know nothing of tests
    before, _offline = _offline, value
    try:
        yield
    finally:
        _offline = before


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
            raise UnitTestConnectedError
        return connect(self, address)

    setattr(owner, name, watched)


def _is_server(address: Any, targets: set[Any]) -> bool:
    if isinstance(address, tuple):
        return address[1] in targets
    return str(address).endswith((f".s.PGSQL.{PORT}", ".sock"))


def _targets(environment: Environment) -> set[Any]:
    """Ports of the servers that a test may reach by mistake."""
    urls = (
        environment.external_url,
        environment.external_redis_url,
        environment.application_url,
        environment.application_redis_url,
    )
    return {PORT, _REDIS_PORT, *(urlsplit(url).port for url in urls if url)}


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
        if _offline:
            raise UnitTestConnectedError
        return connect(*args, **kwargs)

    module.generators.connect = watched
