"""Connections of a test with real commits: what the service closes is kept for its next session.

In tests, the service's engine has no pool: nothing may outlive its test, or go from one event loop
to another. But opening a connection takes longer than most of what is done with it. So until the
test ends, those of its own event loop are given out again, each as new as asyncpg and Postgres can
make it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

_KEPT = 5  # as many as SQLAlchemy's own pool keeps
_PATIENCE = 5.0  # seconds that the server may take for its answer

# What `asyncpg.Connection.reset` leaves of a session. DISCARD ALL would forget prepared statements,
# which asyncpg believes to be there.
_RESET = "SET SESSION AUTHORIZATION DEFAULT; DISCARD TEMP; DISCARD SEQUENCES;"

_ERRORS = (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


class ReusedConnections:
    """Opens connections, from `begin()` to `finish()` so that closing them keeps them."""

    def __init__(self) -> None:
        self._idle: list[asyncpg.Connection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._class = _connection_class(self)

    @property
    def active(self) -> bool:
        """Whether a test with real commits runs on this event loop."""
        return self._loop is not None and self._loop is asyncio.get_running_loop()

    def begin(self) -> None:
        """Keep what is opened on the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    async def finish(self) -> None:
        """Close what was kept."""
        self._loop = None
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close(timeout=_PATIENCE)
            except _ERRORS:  # the test ended it, or its server
                connection.terminate()

    async def connect(self, real: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """A connection that answers: a kept one, or what `real`, called as asyncpg.connect, opens."""
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("SELECT", timeout=_PATIENCE)
            except _ERRORS:
                connection.terminate()
            else:
                return connection
        return await real(*args, **kwargs, connection_class=self._class)

    async def keep(self, connection: asyncpg.Connection) -> bool:
        """Whether a connection that is to be closed was kept."""
        if (
            not self.active
            or len(self._idle) >= _KEPT
            or connection.is_closed()
            or connection.is_in_transaction()
        ):
            return False
        try:
            await connection.reset(timeout=_PATIENCE)
        except _ERRORS:
            return False
        self._idle.append(connection)
        return True


def _connection_class(owner: ReusedConnections) -> type[asyncpg.Connection]:
    class Connection(asyncpg.Connection):  # type: ignore[misc]
        __slots__ = ()

        def get_reset_query(self) -> str:
            return f"{super().get_reset_query()}{_RESET}"

        async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's signature
            if not await owner.keep(self):
                await super().close(timeout=timeout)

    return Connection
