"""Connections that the service closes are kept for its next session, from test to test.

In tests the service has no pool: nothing of one test may reach the next one, or another event loop.
But to open a connection takes longer than most tests. So on the session's event loop, those that
were closed are given out again:

- by `asyncpg.connect`, renewed: what a session can remember is gone;
- by SQLAlchemy's NullPool, as it is, where nothing was done that a session remembers.

Whatever is sent passes by here, so that is known: transactions of queries and changes of rows leave
nothing, anything else might. One that can't be made like new, or may not be, is closed for real. On
other loops, in threads and by other drivers, connections are opened as anywhere.

What a connection wrote must have been counted when it is kept (see `changes.py`): the end of each
transaction asks for that, in the same round trip.

What the driver prepared is kept with its connection, and so is the last value of a sequence, as any
pool keeps them.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Callable
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

_COUNT = " SELECT pg_stat_force_next_flush()"
_ENDS_OF_TRANSACTIONS = ("COMMIT;", "ROLLBACK;")  # as asyncpg sends them

_BEGINS = r"(?:^|;)\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*)*"
_PLAIN = re.compile(
    r"\s*(?:begin|commit|delete|insert|merge|release|rollback|savepoint|select|show|update|values|with)\b",
    re.IGNORECASE,
)
_REMEMBERED = re.compile(r";\s*\w|advisory|dblink", re.IGNORECASE)
# A setting of one's own (`app.tenant`) leaves an empty one behind, which a new session has not.
_UNFORGETTABLE = re.compile(
    rf'\bset_config\b|seed\b|\bset\s+(?:local\s+|session\s+)?["\w]+\s*\.|{_BEGINS}load\b',
    re.IGNORECASE | re.DOTALL,
)
_FORGETS = re.compile(r"\b(?:prepare|deallocate|discard)\b", re.IGNORECASE)
_ENDS = re.compile(r"\bpg_(?:terminate|cancel)_backend\b", re.IGNORECASE)
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
        self.renew_always = False
        """Whether functions of the database do what a session remembers: then any query may call one."""
        self.used = False
        """Whether one was given out since this was last set."""
        self._database = database
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[_Kept] = []
        self._returned: list[tuple[Any, Any, _Kept]] = []  # pool, its record, what that holds
        self._defined = False
        self._ended = False
        self._restore: list[Callable[[], None]] = []

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep, from now on, what is opened on this event loop."""
        self._loop, self._connect = loop, asyncpg.connect
        self._put(asyncpg, "connect", self.connect)
        self._put(asyncpg.connection, "connect", self.connect)
        try:
            from sqlalchemy import NullPool
        except ModuleNotFoundError:  # the service does without
            return
        opens, closes, disposes = NullPool._do_get, NullPool._do_return_conn, NullPool.dispose
        self._put(NullPool, "_do_get", lambda pool: self._take_record(pool) or opens(pool))
        self._put(
            NullPool,
            "_do_return_conn",
            lambda pool, record: self._keep_record(pool, record) or closes(pool, record),
        )

        def dispose(pool: Any) -> None:
            self._dispose(pool)
            disposes(pool)

        self._put(NullPool, "dispose", dispose)

    def _put(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        self._restore.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    async def close(self) -> None:
        """Close what is kept, and let everything be what it was."""
        while self._restore:
            self._restore.pop()()
        self._loop = None
        kept = self._all()
        self._idle, self._returned = [], []
        for connection in kept:
            try:
                await connection.close()
            except _ERRORS:  # the test ended it, or its server
                connection.terminate()

    def discard(self) -> None:
        """Let go of what is kept: its database goes."""
        for connection in self._all():
            connection.terminate()
        self._idle, self._returned = [], []

    def begin(self) -> None:
        """A test begins."""
        self._ended = self._defined = False

    def _all(self) -> list[_Kept]:
        return [*self._idle, *(connection for *_, connection in self._returned)]

    @property
    def processes(self) -> set[int]:
        """The server's processes of the connections that are kept at present."""
        return {connection.get_server_pid() for connection in self._all()}

    # --- what asyncpg opens and closes ----------------------------------------------------------

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """`asyncpg.connect`: a kept connection of these arguments, or a new one."""
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
        """Whether nobody ended it since it was kept: asked, in a test that ends sessions."""
        try:
            if connection.is_dead():
                raise ConnectionError("ended meanwhile")
            if self._ended:
                await connection.ask()
        except BaseException as error:
            connection.terminate()
            if isinstance(error, _ERRORS):
                return False
            raise
        return True

    async def keep(self, connection: _Kept) -> bool:
        """Whether a connection that is to be closed was kept, or is closed already."""
        if not (self._may_keep() and connection.is_keepable()):
            return False
        if await self._is_renewed(connection):
            self._idle.append(connection)
            return True
        return bool(connection.is_closed())

    async def _is_renewed(self, connection: _Kept) -> bool:
        """Renew a connection. One that does not answer is closed."""
        try:
            return await connection.renew()
        except BaseException as error:
            connection.terminate()
            if isinstance(error, _ERRORS):
                return False
            raise

    def _is_here(self) -> bool:
        """Whether this is the event loop whose connections are kept."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # none
            return False

    def _may_keep(self) -> bool:
        return (
            self._is_here() and not self._defined and len(self._idle) + len(self._returned) < _KEPT
        )

    # --- what SQLAlchemy's NullPool opens and closes ----------------------------------------------

    def _take_record(self, pool: Any) -> Any:
        if not self._is_here() or self._defined or self._ended or not _is_ordinary(pool):
            return None
        for one in reversed(self._returned):
            owner, record, connection = one
            if owner is pool:
                self._returned.remove(one)
                if not connection.is_dead():
                    self.used = True
                    return record
                connection.terminate()
        return None

    def _keep_record(self, pool: Any, record: Any) -> bool:
        connection: Any = record.driver_connection
        if not (
            type(connection) is _Kept
            and self._may_keep()
            and connection.is_keepable()
            and connection.is_plain()
            and not self.renew_always
            and _is_ordinary(pool)
        ):
            return False
        record.info.clear()
        self._returned.append((pool, record, connection))
        return True

    def _dispose(self, pool: Any) -> None:
        for one in [one for one in self._returned if one[0] is pool]:
            self._returned.remove(one)
            one[1].close()

    # --- what a connection tells -------------------------------------------------------------------

    def ends(self) -> None:
        """A test ends sessions, those that are kept perhaps."""
        self._ended = True

    def defines(self) -> None:
        """A test changes the schema: what is prepared may not fit any more, for the rest of it."""
        self._defined = True


class _Kept(asyncpg.Connection):  # type: ignore[misc]
    __slots__ = (
        "_codecs",
        "_keeper",
        "_plain",
        "_prepared",
        "_prepared_with",
        "_spoken",
        "_unforgettable",
        "arguments",
    )

    def begin(self, keeper: KeptConnections, arguments: Any) -> None:
        self.arguments = arguments
        self._plain, self._spoken = True, False  # since it was renewed
        self._keeper = keeper
        self._unforgettable = False
        self._codecs: dict[tuple[str, str], Any] = {}
        self._prepared: dict[str, Any] = {}
        self._prepared_with: dict[tuple[str, str], Any] = {}

    def is_dead(self) -> bool:
        """Whether it is closed, or the server said something unasked, such as that it ends."""
        if self.is_closed():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def is_keepable(self) -> bool:
        return not (self.is_closed() or self.is_in_transaction() or self._unforgettable)

    def is_plain(self) -> bool:
        """Whether nothing was done with it that a session remembers."""
        callbacks = (
            self._listeners,
            self._log_listeners,
            self._termination_listeners,
            self._query_loggers,
        )
        return self._plain and not any(callbacks)

    async def ask(self) -> None:
        """Find out whether the server still answers."""
        await super().execute("SELECT", timeout=_PATIENCE)

    async def renew(self) -> bool:
        """Forget what was done with it. False if that can't be: it is to be closed then."""
        # As asyncpg's own reset() does, and what that leaves.
        self._listeners.clear()
        self._log_listeners.clear()
        self._termination_listeners.clear()
        self._query_loggers.clear()
        query = _RENEW.format(prepared=len(self._prepared))
        status = await super().execute(query, timeout=_PATIENCE)
        self._plain, self._spoken = True, False
        return bool(status == "SELECT 0")

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's signature
        # With a time-out it is thrown away: in the midst of something, perhaps.
        if timeout is not None or self.is_closed():
            await super().close(timeout=timeout)
            return
        codecs, self._codecs = self._codecs, {}
        for schema, typename in codecs:
            await self.reset_type_codec(typename, schema=schema)
        if not await self._keeper.keep(self):
            await super().close()

    async def prepare(self, query: str, **options: Any) -> Any:
        self._watch(query)
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
        if query in _ENDS_OF_TRANSACTIONS:
            query += _COUNT
        return await super().execute(query, *args, **options)

    async def _copy_in(self, *args: Any, **options: Any) -> Any:
        self._note(plain=self.is_in_transaction())
        return await super()._copy_in(*args, **options)

    async def _copy_in_records(self, *args: Any, **options: Any) -> Any:
        self._note(plain=self.is_in_transaction())
        return await super()._copy_in_records(*args, **options)

    async def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
        self._watch(query)
        return await super()._get_statement(query, *args, **options)

    def _watch(self, query: str) -> None:
        """All that is sent comes by here: note what it leaves behind."""
        self._note(
            plain=_PLAIN.match(query) is not None
            and _REMEMBERED.search(query) is None
            and (self.is_in_transaction() or query.startswith("BEGIN"))  # else nobody counts it
        )
        if _UNFORGETTABLE.search(query):
            self._unforgettable = True
        if _FORGETS.search(query):
            self._prepared.clear()
        if _DEFINES.search(query):
            self._keeper.defines()
        if _ENDS.search(query):
            self._keeper.ends()

    def _note(self, *, plain: bool) -> None:
        self._spoken = True
        self._plain &= plain

    async def reload_schema_state(self) -> None:
        self._prepared.clear()
        await super().reload_schema_state()

    async def set_type_codec(
        self, typename: str, *, schema: str = "public", **options: Any
    ) -> None:
        await super().set_type_codec(typename, schema=schema, **options)
        self._plain &= not self._spoken  # what it got when it was opened, the next session has, too
        self._codecs[schema, typename] = {k: _behaviour(v) for k, v in options.items()}

    async def set_builtin_type_codec(
        self, typename: str, *, schema: str = "public", **options: Any
    ) -> None:
        await super().set_builtin_type_codec(typename, schema=schema, **options)
        self._plain &= not self._spoken
        self._codecs[schema, typename] = options


def _is_ordinary(pool: Any) -> bool:
    """Whether nobody but SQLAlchemy wants to know of each connection that is opened or closed."""
    listeners = (*pool.dispatch.connect, *pool.dispatch.close)
    return all(listener.__module__.startswith("sqlalchemy.") for listener in listeners)


def _behaviour(value: Any) -> Any:
    """Equal for two functions that do the same, as those that SQLAlchemy makes for each connection."""
    code = getattr(value, "__code__", None)
    if code is None:
        return value
    cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
    return code, value.__defaults__, cells
