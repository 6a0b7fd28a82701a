"""Waiting that a stopped clock does not stop: tests freeze the time, and the harness waits in their midst."""

from __future__ import annotations

import math
from collections.abc import Iterator
from time import sleep  # the real one, whatever a test puts into its place later


def polls(seconds: float, every: float = 0.001) -> Iterator[float]:
    """Look again and again, for about so many seconds in all.

    Counts its naps instead of asking a clock: freezegun and time-machine stop and turn all of them.

    Args:
        seconds: after which it ends.
        every: seconds between two looks.

    Yields:
        The seconds that it has slept.
    """
    for nap in range(math.ceil(seconds / every) + 1):
        yield nap * every
        sleep(every)
