"""Waiting that a stopped clock does not stop: tests freeze the time, and the harness waits in their midst."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import sleep  # the real one, whatever a test puts into its place later


def polls(seconds: float, every: float = 0.001) -> Iterator[float]:
    """Look again and again, for so many seconds in all, and less often the longer it takes.

    Asks `os.times()`: freezegun and time-machine stop and turn the clocks of `time`.

    Args:
        seconds: after which it looks a last time.
        every: seconds between the first looks; up to ten times as many later.

    Yields:
        The seconds that have passed, to a hundredth.
    """
    begun, waited = os.times().elapsed, 0.0
    yield waited
    while waited < seconds:
        sleep(min(max(every, waited / 10), every * 10))
        waited = os.times().elapsed - begun
        yield waited
