"""What the pools of SQLAlchemy keep open between sessions: in tests, nothing.

A connection in a pool would outlive the test that opened it, with what it knows of a database that is
replaced, and often on an event loop that is gone. So each is closed when it is given back, in the loop or
thread that used it, as `NullPool` does. The limits of a pool stay, and so do those who wait at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import NullPool, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord

_Record: Any = _ConnectionRecord


def watch(
    take: Callable[[Any], Any] = lambda pool: None,
    opened: Callable[[Any], None] = lambda record: None,
    keep: Callable[[Any, Any], bool] = lambda pool, record: False,
) -> Callable[[], None]:
    """Let pools keep nothing, but for what `keep` keeps for `take` to give again.

    Args:
        take: what a pool is given instead of a new connection; None where there is nothing.
        opened: is told of each record that is given out, once its connection is open.
        keep: whether it keeps a connection that a pool would close.

    Returns:
        Lets them be what they were.
    """
    before: dict[Any, tuple[Any, Any]] = {
        kind: (kind._do_get, kind._do_return_conn) for kind in (NullPool, QueuePool)
    }
    (opens, closes), (waits, returns) = before[NullPool], before[QueuePool]
    connects = _Record.get_connection

    def get_connection(record: Any) -> Any:
        connection = connects(record)  # a new one, where others were found to be lost
        opened(record)
        return connection

    def get(pool: Any) -> Any:
        record = take(pool)
        return opens(pool) if record is None else record

    def give_back(pool: Any, record: Any) -> None:
        if not keep(pool, record):
            closes(pool, record)

    def get_counted(pool: Any) -> Any:
        is_full = pool._max_overflow > -1 and pool._overflow >= pool._max_overflow
        record = None if is_full else take(pool)
        if record is None:
            return waits(pool)
        pool._inc_overflow()
        return record

    def give_back_counted(pool: Any, record: Any) -> None:
        if _has_waiting(pool._pool):
            returns(pool, record)
            return
        try:
            if not keep(pool, record):
                record.close()
        finally:
            pool._dec_overflow()

    _set({NullPool: (get, give_back), QueuePool: (get_counted, give_back_counted)}, get_connection)
    return lambda: _set(before, connects)


def _set(ways: Mapping[Any, tuple[Any, Any]], connects: Callable[[Any], Any]) -> None:
    for kind, (get, give_back) in ways.items():
        kind._do_get, kind._do_return_conn = get, give_back
    _Record.get_connection = connects


def _has_waiting(queue: Any) -> bool:
    """Whether somebody waits for a connection, in a thread or on an event loop."""
    if hasattr(queue, "not_empty"):
        return bool(queue.not_empty._waiters)
    return any(not getter.done() for getter in queue._queue._getters)
