"""Connections that the service's engine closes are kept for its next session, from test to test.

In tests no pool keeps anything (see `pools.py`): nothing of one test may reach the next one, or another
event loop. But to open a connection takes longer than most tests. So on the session's event loop, a pool
of SQLAlchemy is given again what it closed before, if that is like new: whatever is sent passes by here,
and `statements.py` tells whether it leaves something that a session remembers (settings, temporary
tables, listeners, locks, …). If so, or after another codec, a connection is closed for real. On other
loops, in threads and by other drivers, all are opened as anywhere.

What a connection wrote must have been counted when it is kept (see `changes.py`). The end of a
transaction asks for that, in the same round trip, as the driver ends it; if anything is sent after that,
or a transaction ends in other words, the connection is closed for real.

The driver's prepared statements and the last value of a sequence are kept, as any pool keeps them.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import NullPool

from ..checks.offline import is_offline
from . import pools
from .statements import Names

_KEPT = 5  # as many as SQLAlchemy's own pool keeps

_COUNT = " SELECT pg_stat_force_next_flush()"
_ENDS_OF_TRANSACTIONS = ("COMMIT;", "ROLLBACK;")  # as asyncpg sends them

SENDS = (
    *("bind", "bind_execute", "bind_execute_many", "close_portal", "close_statement"),
    *("copy_in", "copy_out", "execute", "prepare", "query"),
)
"""The methods of asyncpg's protocol that send something, and don't end it. The oldest has not all."""


class KeptConnections:
    """The connections of one event loop, that of the session: `watch()`, then `close()`.

    Args:
        database: only connections that name it are kept.
    """

    def __init__(self, database: str) -> None:
        self.used = False
        """Whether one was given out since this was last set."""
        self.names = Names(None)
        """Those of the database, by which a statement reaches what a session remembers."""
        self.uncounted = False
        """Whether a test told Postgres not to count what it changes."""
        self._database = database
        self._loop: asyncio.AbstractEventLoop | None = None
        # What connects, and what SQLAlchemy records of it.
        self._records: list[tuple[Any, Any]] = []
        self._doubtful = False
        self._restore: list[Callable[[], None]] = []

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep, from now on, what is opened on this event loop."""
        self._loop, self._connect = loop, asyncpg.connect
        self._put(asyncpg, "connect", self.connect)
        self._put(asyncpg.connection, "connect", self.connect)
        self._restore.append(pools.watch(self._take, _opened, self._keep))

    def _put(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        self._restore.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    async def close(self) -> None:
        """Close what is kept, and let everything be what it was."""
        while self._restore:
            self._restore.pop()()
        records, self._records = self._records, []
        for _, record in records:
            try:
                await record.driver_connection.close(timeout=1)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                record.driver_connection.terminate()  # a test ended it, or its server
        self._loop = None

    def discard(self) -> None:
        """Let go of what is kept: its database goes."""
        for _, record in self._records:
            record.driver_connection.terminate()
        self._records = []

    def begin(self) -> None:
        """A test begins."""
        self._doubtful = self.uncounted = False

    def doubt(self) -> None:
        """A test changes the schema, or ends sessions: for the rest of it, nothing is kept or given out.

        What is prepared may not fit any more; what is kept may be about to end.
        """
        self._doubtful = True

    @property
    def processes(self) -> set[int]:
        """The server's processes of the connections that are kept at present."""
        return {record.driver_connection.get_server_pid() for _, record in self._records}

    def _is_here(self) -> bool:
        """Whether this is the event loop whose connections are kept."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # none
            return False

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """`asyncpg.connect`, whose connections tell what is done with them."""
        if (
            not self._is_here()
            or self._database not in repr((args, kwargs))
            or "connection_class" in kwargs
        ):
            return await self._connect(*args, **kwargs)
        self.used = True
        connection = await self._connect(*args, **kwargs, connection_class=_Watched)
        connection.begin(self)
        return connection

    def _take(self, pool: Any) -> Any:
        """What `pool` is given instead of a new connection, if there is something."""
        if is_offline() or not self._is_here() or self._doubtful or not _is_ordinary(pool):
            return None
        # An engine that was disposed of has a new pool, and the same function that connects.
        for creator, record in reversed(self._records):
            if creator is pool._creator and _may_have(pool, record):
                self._records.remove((creator, record))
                if not record.driver_connection.is_dead():
                    self.used = True
                    return record
                record.driver_connection.terminate()
        return None

    def _keep(self, pool: Any, record: Any) -> bool:
        """Whether a connection is kept that `pool` would close."""
        connection = record.driver_connection
        if not (
            type(connection) is _Watched
            and self._is_here()
            and not self._doubtful
            and connection.is_like_new()
            and _is_ordinary(pool)
        ):
            return False
        record.info.clear()
        self._records.append((pool._creator, record))
        if len(self._records) > _KEPT:
            self._records.pop(0)[1].close()  # of an engine that is no more, perhaps
        return True


def _opened(record: Any) -> None:
    if type(record.driver_connection) is _Watched:
        record.driver_connection.opened()


def _may_have(pool: Any, record: Any) -> bool:
    """A pool that counts its connections has its own back, no other's."""
    return isinstance(pool, NullPool) or record._ConnectionRecord__pool is pool


def _is_ordinary(pool: Any) -> bool:
    """Whether nobody but SQLAlchemy wants to know of each connection that is opened or closed."""
    listeners = (*pool.dispatch.connect, *pool.dispatch.close)
    return all(listener.__module__.startswith("sqlalchemy.") for listener in listeners)


class _Watched(asyncpg.Connection):  # type: ignore[misc]
    """Knows whether it is like new, and whether what it wrote has been counted."""

    __slots__ = ("_is_counted", "_keeper", "_plain", "is_opened")

    def begin(self, keeper: KeptConnections) -> None:
        self._keeper = keeper
        self._plain, self._is_counted, self.is_opened = True, True, False
        for name in SENDS:
            if send := getattr(self._protocol, name, None):
                setattr(self._protocol, name, partial(self._sends, name, send))

    def opened(self) -> None:
        """What it was told until now, each is that the engine opens."""
        if not self.is_opened:
            self._is_counted = self.is_opened = True

    def is_dead(self) -> bool:
        """Whether it is closed, or the server said something unasked, such as that it ends."""
        if self.is_closed():
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def is_like_new(self) -> bool:
        """Whether nothing was done with it that a session remembers, or that was not counted."""
        callbacks = (
            self._listeners,
            self._log_listeners,
            self._termination_listeners,
            getattr(self, "_query_loggers", ()),  # not in the oldest
        )
        return (
            self._plain
            and self._is_counted
            and not any(callbacks)
            and not self.is_closed()
            and not self.is_in_transaction()
        )

    def _sends(self, name: str, send: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Whatever is sent comes by here, by whichever method."""
        self._is_counted = False
        self._plain &= not name.startswith("copy")  # in a statement that is not looked at
        return send(*args, **options)

    async def execute(self, query: str, *args: Any, **options: Any) -> Any:
        self._watch(query)
        if query not in _ENDS_OF_TRANSACTIONS:
            return await super().execute(query, *args, **options)
        done = await super().execute(query + _COUNT, *args, **options)
        self._is_counted = True
        return done

    async def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
        self._watch(query)
        return await super()._get_statement(query, *args, **options)

    def _watch(self, query: str) -> None:
        """The text of each statement but COPY comes by here, before it is sent the first time."""
        effect = self._keeper.names.effect(query)
        self._plain &= effect.leaves_nothing
        if effect.defines:
            self._keeper.doubt()
        if effect.hides:
            self._keeper.uncounted = True

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        self._plain &= not self.is_opened
        await super().set_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        self._plain &= not self.is_opened
        await super().set_builtin_type_codec(*args, **options)

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        self._plain &= not self.is_opened
        await super().reset_type_codec(*args, **options)
