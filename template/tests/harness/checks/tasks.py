"""Asyncio tasks that a test left behind: found, reported, cancelled."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from typing import Any

import pytest

_BEFORE = pytest.StashKey["set[asyncio.Task[Any]]"]()
_LEFT = pytest.StashKey["set[asyncio.Task[Any]]"]()
_TEST = pytest.StashKey[Any]()
_RUNNING = pytest.StashKey["dict[asyncio.Task[Any], str] | None"]()

_loop: asyncio.AbstractEventLoop | None = None  # the session's, which all tests share
_wide = ContextVar("of a wider fixture", default=False)
"""Each task has the context of what began it: a server's those of its connections, a worker's its own."""


def watch_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    """From now on, look at this event loop as well: what runs there goes on in the next test."""
    global _loop  # noqa: PLW0603 - a process has one session
    _loop = loop


def _running() -> set[asyncio.Task[Any]]:
    return set() if _loop is None or _loop.is_closed() else asyncio.all_tasks(_loop)


def begin(item: pytest.Item) -> None:
    """Before a test is set up: note what runs already."""
    item.stash[_BEFORE], item.stash[_LEFT], item.stash[_RUNNING] = _running(), set(), None


@contextmanager
def of_a_wider_fixture() -> Iterator[None]:
    """What is begun in this block, and what that begins during tests, runs for a fixture's scope."""
    token = _wide.set(True)
    try:
        yield
    finally:
        _wide.reset(token)


def _is_wide(task: asyncio.Task[Any]) -> bool:
    if sys.version_info >= (3, 12):
        context: Context = task.get_context()
    else:  # it has one that it does not tell
        context = next(found for found in gc.get_referents(task) if isinstance(found, Context))
    return context.get(_wide, False)


def watch(item: pytest.Item) -> None:
    """Before a test is called: note which tasks it begins and does not end, on whichever loop."""
    test = item.stash.setdefault(_TEST, getattr(item, "obj", None))
    if inspect.iscoroutinefunction(test):
        item.obj = _watched(item, test)  # type: ignore[attr-defined]


def _watched(item: pytest.Item, test: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        before = _tasks_here()
        token = _wide.set(False)  # a wider fixture of anyio's may have begun the task of all tests
        try:
            return await test(*args, **kwargs)
        finally:
            _wide.reset(token)
            item.stash[_LEFT] = _tasks_here() - before

    return watched


def _tasks_here() -> set[asyncio.Task[Any]]:
    with suppress(RuntimeError):  # a test marked `anyio` may run on Trio
        return asyncio.all_tasks()
    return set()


def watch_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Before a test is torn down: look between its own fixtures and those of the module and session.

    An event loop may go with the latter, and what still runs with it.
    """
    parent = item.parent
    if parent is None or not item.stash.get(_LEFT, None):
        return
    if nextitem is None or parent not in nextitem.listchain():
        parent.addfinalizer(functools.partial(_note, item))


def _note(item: pytest.Item) -> None:
    before = item.stash.get(_BEFORE, None)
    on_loop = set() if before is None else _running() - before
    item.stash[_RUNNING] = {
        task: _describe(task)
        for task in item.stash.get(_LEFT, set()) | on_loop
        # One that is being cancelled ends as soon as its loop runs again.
        if not (task.done() or task.cancelling() or _closes_a_generator(task) or _is_wide(task))
    }


def _closes_a_generator(task: asyncio.Task[Any]) -> bool:
    """Whether an event loop began it, for an asynchronous generator that nobody had closed."""
    return type(task.get_coro()).__name__ == "async_generator_athrow"


def left(item: pytest.Item) -> list[str]:
    """After the test and its fixtures: cancel what still runs. Returns a line for each task."""
    if item.stash.get(_RUNNING, None) is None:
        _note(item)
    running, item.stash[_RUNNING] = item.stash[_RUNNING] or {}, None
    for task in running:
        if not task.get_loop().is_closed():
            task.cancel()
    return sorted(running.values())


def _describe(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    where = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    coroutine = task.get_coro()
    return f"  {task.get_name()}, {getattr(coroutine, '__qualname__', coroutine)}{where}"
