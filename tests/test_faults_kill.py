"""FAULTS 3: runs killed at instants spread over all that they do; the next one is always green."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from tests.support.machine import kill, linux_only, started_with
from tests.support.small import Small

pytestmark = linux_only


def run_alone(small: Small, pid: int) -> None:
    kill([pid])


def process_group(small: Small, pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def server_alone(small: Small, pid: int) -> None:
    kill(p for p, line in started_with(small.mark).items() if "/postgres -D" in line)


def everything(small: Small, pid: int) -> None:
    kill(started_with(small.mark))


VICTIMS = [run_alone, process_group, server_alone, everything]


def warm(small: Small) -> None:
    """The cluster and the golden database are there."""


def to_be_built(small: Small) -> None:
    """The golden database has to be built."""
    small.edit_seeder()


def from_nothing(small: Small) -> None:
    """There is no cluster."""
    shutil.rmtree(small.home, ignore_errors=True)


BEGINNINGS = [warm, to_be_built, from_nothing]


def sweep(
    small: Small,
    complete: Any,
    begin: Callable[[Small], None],
    victims: Iterable[Callable[[Small, int], None]],
    *options: str,
) -> None:
    """Kill a run for each victim, at instants evenly spread over the time that one takes."""
    victims = list(victims)
    begin(small)
    begun = time.monotonic()
    small.green(*options)
    lasts = time.monotonic() - begun
    recoveries = []
    for number, victim in enumerate(victims):
        begin(small)
        run = small.begin(*options)
        instant = lasts * (number + 0.5) / len(victims)
        time.sleep(instant)
        victim(small, run.pid)
        small.end(run)
        print(f"killed after {instant:.3f} of {lasts:.3f} s: {victim.__name__}, {begin.__name__}")
        recoveries.append(small.healed(complete))
    print(f"{len(recoveries)} runs killed; the longest recovery took {max(recoveries):.2f} s")


def test_killed_runs(small: Small, complete: Any) -> None:
    sweep(small, complete, from_nothing, [*VICTIMS, run_alone])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("begin", BEGINNINGS)
def test_kill_sweep(
    begin: Callable[[Small], None],
    victim: Callable[[Small, int], None],
    workers: list[str],
    small: Small,
    complete: Any,
) -> None:
    sweep(small, complete, begin, [victim] * 9, *workers)
