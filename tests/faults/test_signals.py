"""FAULTS 23: signals to a run, by a user, a terminal or a machine, and workers that crash."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.machine import linux_only, started_with
from tests.support.small import PASSED, Small, wait_until
from tests.support.tiers import first, quick, slow

CONCERNS = ["*/harness/servers/*", "*/harness/golden/build.py"]

pytestmark = linux_only


def while_it_seeds(small: Small, *options: str) -> subprocess.Popen[str]:
    """A run that waits for its seeder."""
    small.edit_seeder()
    run = small.begin(*options, SEED="time.sleep(600)")
    small.wait_for("app.seed_database", run)
    return run


def while_initdb_runs(small: Small, *options: str) -> subprocess.Popen[str]:
    """A run that makes its cluster."""
    small.harness("clean")
    run = small.begin(*options)
    small.wait_for("initdb", run)
    return run


def while_a_test_runs(small: Small, *options: str) -> subprocess.Popen[str]:
    """A run in the middle of a test."""
    hold = small.path / "hold"
    hold.unlink(missing_ok=True)
    run = small.begin(*options, HOLD=str(hold))
    wait_until(hold.exists, "the test")
    return run


Moment = Callable[..., subprocess.Popen[str]]
MOMENTS: list[Moment] = [while_it_seeds, while_initdb_runs, while_a_test_runs]


@pytest.mark.parametrize("moment", first(1, MOMENTS))
def test_ctrl_c(moment: Moment, small: Small, complete: Any) -> None:
    run = moment(small)
    os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to all processes of the group
    outcome = small.end(run, timeout=60)
    assert outcome.status == 2
    assert "KeyboardInterrupt" in outcome.output
    assert not started_with(small.mark), "nothing of a run that could clean up lives on"
    small.healed(complete)


SIGNALS = {
    "twice": [signal.SIGINT] * 2,
    "three times": [signal.SIGINT] * 3,
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "SIGQUIT": [signal.SIGQUIT],
}
# Each at each moment, with workers and alone by turns: each two of the three meet.
WORKERS = itertools.cycle(["two workers", "alone"])
CASES = [(*case, next(WORKERS)) for case in itertools.product(SIGNALS, MOMENTS)]
QUICK = [
    ("twice", while_a_test_runs, "two workers"),
    ("SIGTERM", while_initdb_runs, "alone"),
]


@pytest.mark.parametrize(("signals", "moment", "workers"), quick(*QUICK, of=CASES, others=slow))
def test_signals(signals: str, moment: Moment, workers: str, small: Small, complete: Any) -> None:
    run = moment(small, *(["-n", "2"] if workers == "two workers" else []))
    for number in SIGNALS[signals]:
        os.killpg(run.pid, number)
        time.sleep(0.05)
    outcome = small.end(run, timeout=60)
    assert outcome.status
    small.healed(complete)


@pytest.mark.thorough
def test_run_that_ignores_signals(small: Small, complete: Any) -> None:
    """As background jobs of a shell do, and what `nohup` runs: its servers end all the same."""
    ignoring = 'trap "" HUP INT QUIT TERM; exec "$@"'
    deaf = dataclasses.replace(small, prefix=("sh", "-c", ignoring, "sh"))
    deaf.edit_seeder()
    deaf.green()
    assert not started_with(small.mark)
    small.healed(complete)


@pytest.mark.thorough
def test_run_that_is_not_told_of_the_end_of_processes(small: Small, complete: Any) -> None:
    """A program that ignores SIGCHLD passes that on; a command that fails fails all the same."""
    deaf = dataclasses.replace(small, prefix=("env", "--ignore-signal=CHLD"))
    deaf.edit_seeder()
    assert "ended with status 3" in deaf.red(SEED="raise SystemExit(3)")
    small.healed(complete)


CRASHES = {
    "killed": "os.kill(os.getpid(), 9)",
    "exits": "os._exit(3)",
    "segmentation fault": "os.kill(os.getpid(), 11)",
}


@pytest.mark.parametrize(
    "crash",
    first(1, CRASHES),
)
def test_worker_crashes(crash: str, small: Small, complete: Any) -> None:
    """pytest-xdist puts another worker in its place, which has a database, too."""
    crashing = small.path / "tests/test_crash.py"
    crashing.write_text(f"import os\n\n\nasync def test_crash(db_session):\n    {CRASHES[crash]}\n")
    try:
        outcome = small.outcome("-n", "2")
    finally:
        crashing.unlink()
    assert outcome.counts == {"failed": 1, "passed": PASSED}
    assert "crashed while running 'tests/test_crash.py::test_crash'" in outcome.output
    small.healed(complete)
