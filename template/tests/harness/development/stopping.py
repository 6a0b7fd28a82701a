"""How this process ends when it is told to: once, and not between a start and knowing of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """This process was told to end, by Ctrl-C or by another signal."""


class _State:
    told = 0
    raised = False
    undisturbed = 0


def listen() -> None:
    """From now on, raise `Stopped` when told to end; while that is going on, ignore the next ones.

    They reach uvicorn all the same, which hurries.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _tell)


def _tell(*_: object) -> None:
    _State.told += 1
    if not _State.undisturbed or _State.told > 1:
        _raise_once()


def _raise_once() -> None:
    if not _State.raised:
        _State.raised = True
        raise Stopped


@contextmanager
def undisturbed() -> Iterator[None]:
    """Be told at the end of this block, not within; within only by who does not want to wait."""
    _State.undisturbed += 1
    try:
        yield
    finally:
        _State.undisturbed -= 1
    if _State.told:
        _raise_once()
