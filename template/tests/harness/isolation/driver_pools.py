"""Pools of asyncpg's and psycopg's own: what they hold goes on after a test, as in production.

They open connections when they please, often in the midst of a test: when they are used first, when more
is asked of them at the same time, or by tasks of theirs. To end these would fail whoever has the pool.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any


def idle() -> set[int]:
    """The server's processes of sessions that a pool keeps, that nobody uses and somebody still can."""
    holders = [
        held
        for pool in _found("asyncpg.pool", "Pool")
        if not pool._loop.is_closed()
        for held in pool._holders
        if held.is_connected() and held.is_idle()
    ]
    connections = [
        connection
        for pool in _found("psycopg_pool.base", "BasePool")
        if not any(_has_gone(worker) for worker in pool._workers)
        for connection in tuple(pool._pool)
        if not connection.closed
    ]
    return {held._con.get_server_pid() for held in holders} | {
        connection.info.backend_pid for connection in connections
    }


def expire() -> None:
    """What they hold is about to end. Asyncpg's connect anew, before they find out."""
    for pool in _found("asyncpg.pool", "Pool"):
        pool._generation += 1  # as its expire_connections(), a coroutine


def _found(module: str, kind: str) -> list[Any]:
    if module not in sys.modules:
        return []
    kinds = getattr(sys.modules[module], kind)
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)]


def _has_gone(worker: Any) -> bool:
    """Whether the event loop of a pool's worker is no more. Others are threads."""
    return isinstance(worker, asyncio.Task) and (worker.done() or worker.get_loop().is_closed())
