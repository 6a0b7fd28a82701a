"""Connections that the service closes are kept for its next session, from test to test.

In tests the service has no pool: nothing of one test may reach the next one, or another event loop.
But to open a connection takes longer than most tests. So on the session's event loop,
`asyncpg.connect` gives out those that were closed before, each renewed: what a session can
remember is gone, and what it wrote is counted (see `changes.py`). One that can't be made like new,
or may not be, is closed for real. On other loops, in threads and by other drivers, connections are
opened as anywhere.

What the driver prepared is kept with its connection, as any pool keeps it.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

_KEPT = 5  # as many as SQLAlchemy's own pool keeps
_STATEMENTS = 500  # that one connection keeps prepared
_PATIENCE = 5.0  # seconds that the server may take for its answer

# What a session remembers beyond its transaction. The last line has a row where statements were
# prepared or forgotten by SQL: what the driver believes to be there may be something else.
_RENEW = """
SET SESSION AUTHORIZATION DEFAULT; RESET ALL; SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *;
DISCARD TEMP; DISCARD SEQUENCES; SELECT pg_stat_force_next_flush();
SELECT FROM pg_prepared_statements
HAVING count(*) FILTER (WHERE from_sql) > 0 OR count(*) FILTER (WHERE NOT from_sql) < {prepared}
"""

_BEGINS = r"(?:^|;)\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*"
# A setting of one's own (`app.tenant`) leaves an empty one behind, which a new session has not.
_UNFORGETTABLE = re.compile(
    rf'\bset_config\b|\bset\s+(?:local\s+|session\s+)?["\w]+\s*\.|{_BEGINS}load\b',
    re.IGNORECASE | re.DOTALL,
)
_FORGETS = re.compile(r"\b(?:prepare|deallocate|discard)\b", re.IGNORECASE)
_DEFINES = re.compile(
    rf"{_BEGINS}(?:alter|call|create|do|drop|import|refresh|reindex|security)\b",
    re.IGNORECASE | re.DOTALL,
)

_ERRORS = (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


class KeptConnections:
    """The connections of one event loop, that of the session: `watch()`, then `close()`.

    Args:
        database: only connections that name it are kept.
    """

    def __init__(self, database: str) -> None:
        self.used = False
        """Whether one was given out since this was last set."""
        self._database = database
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[_Kept] = []
        self._defined = False
        self._fresh: set[_Kept] = set()
        self._connect: Callable[..., Awaitable[Any]] | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep, from now on, what `asyncpg.connect` opens on this event loop."""
        self._loop, self._connect = loop, asyncpg.connect
        asyncpg.connect = asyncpg.connection.connect = self.connect

    async def close(self) -> None:
        """Close what is kept, and let `asyncpg.connect` be what it was."""
        asyncpg.connect = asyncpg.connection.connect = self._connect
        self._loop = None
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close()
            except _ERRORS:  # the test ended it, or its server
                connection.terminate()

    def discard(self) -> None:
        """Let go of what is kept: its database goes."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()
        self._defined = False

    def begin(self) -> None:
        """A test begins: what is kept was renewed a moment ago."""
        self._fresh = set(self._idle)

    @property
    def processes(self) -> set[int]:
        """The server's processes of the connections that are kept at present."""
        return {connection.get_server_pid() for connection in self._idle}

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """`asyncpg.connect`: a kept connection of these arguments, or a new one."""
        assert self._connect is not None
        if (
            asyncio.get_running_loop() is not self._loop
            or self._database not in repr((args, kwargs))
            or "connection_class" in kwargs
        ):
            return await self._connect(*args, **kwargs)
        self.used = True
        while found := self._take((args, kwargs)):
            if await self._is_alive(found):
                return found
        connection = await self._connect(*args, **kwargs, connection_class=_Kept)
        connection.begin(self, (args, kwargs))
        return connection

    def _take(self, arguments: Any) -> _Kept | None:
        for connection in reversed(self._idle) if not self._defined else ():
            if connection.arguments == arguments:
                self._idle.remove(connection)
                return connection
        return None

    async def _is_alive(self, connection: _Kept) -> bool:
        """Whether nobody ended it since it was kept: asked, where a test went on meanwhile."""
        fresh = connection in self._fresh
        self._fresh.discard(connection)
        try:
            if connection.is_closed() or connection.has_news():
                raise ConnectionError("ended meanwhile")
            if not fresh:
                await connection.execute("SELECT", timeout=_PATIENCE)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, _ERRORS):
                return False
            raise
        return True

    async def keep(self, connection: _Kept) -> bool:
        """Whether a connection that is to be closed was kept instead."""
        if (
            self._loop is None
            or asyncio.get_running_loop() is not self._loop
            or self._defined
            or len(self._idle) >= _KEPT
            or not connection.is_keepable()
        ):
            return False
        try:
            renewed = await connection.renew()
        except BaseException as error:
            connection.terminate()
            if isinstance(error, _ERRORS):
                return True  # closed
            raise
        if renewed:
            self._idle.append(connection)
        return renewed

    def defines(self) -> None:
        """A test changes the schema: what is prepared may not fit any more, for the rest of it."""
        self._defined = True


class _Kept(asyncpg.Connection):  # type: ignore[misc]
    __slots__ = ("_codecs", "_keeper", "_prepared", "_prepared_with", "_unforgettable", "arguments")

    def begin(self, keeper: KeptConnections, arguments: Any) -> None:
        self.arguments = arguments
        self._keeper = keeper
        self._unforgettable = False
        self._codecs: dict[tuple[str, str], Any] = {}
        self._prepared: dict[str, Any] = {}
        self._prepared_with = self._codecs

    def has_news(self) -> bool:
        """Whether the server said something that nobody asked for, such as that it ends."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def is_keepable(self) -> bool:
        return not (self.is_closed() or self.is_in_transaction() or self._unforgettable)

    async def renew(self) -> bool:
        """Forget what was done with it. False if that can't be: it is to be closed then."""
        # As asyncpg's own reset() does, and what that leaves.
        self._listeners.clear()
        self._log_listeners.clear()
        self._termination_listeners.clear()
        self._query_loggers.clear()
        for schema, typename in self._codecs:
            await self.reset_type_codec(typename, schema=schema)
        self._codecs = {}
        query = _RENEW.format(prepared=len(self._prepared))
        status = await super().execute(query, timeout=_PATIENCE)
        return bool(status == "SELECT 0")

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's signature
        # With a time-out it is thrown away: in the midst of something, perhaps.
        if timeout is not None or not await self._keeper.keep(self):
            await super().close(timeout=timeout)

    async def prepare(self, query: str, **options: Any) -> Any:
        if any(value is not None for value in options.values()):
            return await super().prepare(query, **options)
        if self._prepared_with != self._codecs:  # a statement decodes as it was told at first
            self._prepared.clear()
            self._prepared_with = dict(self._codecs)
        found = self._prepared.get(query)
        if found is None:
            if len(self._prepared) >= _STATEMENTS:
                self._prepared.clear()
            found = await super().prepare(query)
            if not _FORGETS.search(query):
                self._prepared[query] = found
        return found

    async def execute(self, query: str, *args: Any, **options: Any) -> Any:
        self._watch(query)
        return await super().execute(query, *args, **options)

    async def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
        self._watch(query)
        return await super()._get_statement(query, *args, **options)

    def _watch(self, query: str) -> None:
        """All that is sent comes by here: note what a renewal can't undo."""
        if _UNFORGETTABLE.search(query):
            self._unforgettable = True
        if _FORGETS.search(query):
            self._prepared.clear()
        if _DEFINES.search(query):
            self._keeper.defines()

    async def reload_schema_state(self) -> None:
        self._prepared.clear()
        await super().reload_schema_state()

    async def set_type_codec(
        self, typename: str, *, schema: str = "public", **options: Any
    ) -> None:
        await super().set_type_codec(typename, schema=schema, **options)
        self._codecs[schema, typename] = {k: _behaviour(v) for k, v in options.items()}

    async def set_builtin_type_codec(
        self, typename: str, *, schema: str = "public", **options: Any
    ) -> None:
        await super().set_builtin_type_codec(typename, schema=schema, **options)
        self._codecs[schema, typename] = options


def _behaviour(value: Any) -> Any:
    """Equal for two functions that do the same, as those that SQLAlchemy makes for each connection."""
    code = getattr(value, "__code__", None)
    if code is None:
        return value
    cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
    return code, value.__defaults__, cells
