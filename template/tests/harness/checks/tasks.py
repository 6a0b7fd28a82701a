"""Asyncio tasks that a test left behind: found, reported, cancelled."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

_LEFT = pytest.StashKey["set[asyncio.Task[Any]]"]()
_TEST = pytest.StashKey[Any]()
_RUNNING = pytest.StashKey["dict[asyncio.Task[Any], str] | None"]()


def watch(item: pytest.Item) -> None:
    """Before a test is called: note which tasks it begins and does not end."""
    item.stash[_LEFT], item.stash[_RUNNING] = set(), None  # of an attempt before this one
    test = item.stash.setdefault(_TEST, getattr(item, "obj", None))
    if inspect.iscoroutinefunction(test):
        item.obj = _watched(item, test)  # type: ignore[attr-defined]


def _watched(item: pytest.Item, test: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        before = asyncio.all_tasks()
        try:
            return await test(*args, **kwargs)
        finally:
            item.stash[_LEFT] = asyncio.all_tasks() - before

    return watched


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
    item.stash[_RUNNING] = {
        task: _describe(task)
        for task in item.stash.get(_LEFT, ())
        # One that is being cancelled ends as soon as its loop runs again.
        if not task.done() and not task.cancelling()
    }


def left(item: pytest.Item) -> list[str]:
    """After the test and its fixtures: cancel what still runs. Returns a line for each task."""
    if item.stash.get(_RUNNING, None) is None:
        _note(item)
    running = item.stash[_RUNNING] or {}
    for task in running:
        if not task.get_loop().is_closed():
            task.cancel()
    return sorted(running.values())


def _describe(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    where = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    coroutine = task.get_coro()
    return f"  {task.get_name()}, {getattr(coroutine, '__qualname__', coroutine)}{where}"
