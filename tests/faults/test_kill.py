"""FAULTS 3: runs killed at instants spread over all that they do; the next one is always green."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import kill, linux_only, started_with
from tests.support.small import PASSED, Small, wait_until
from tests.support.tiers import first

CONCERNS = ["*/harness/golden/*", "*/harness/servers/*"]

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

# Between two tests, rows are put back; after some of these, the database is replaced.
BUSY = """\
import pytest
from sqlalchemy import text

from app.models import Customer


@pytest.mark.parametrize("number", range(300))
async def test_changes(number, db_session):
    assert await db_session.scalar(text("SELECT count(*) FROM customers")) == 5
    db_session.add(Customer(full_name="Mallory", email="mallory@example.org"))
    if number % 3:
        await db_session.execute(text("UPDATE customers SET phone = '4711'"))
    if number % 40 == 39:
        await db_session.execute(text("CREATE TABLE hostile (i int)"))
    await db_session.commit()
"""
BUSY_PASSED = 300
MANY = 100
"""Sessions to kill: each may cost a clone, so that a slow machine would never be done."""


@pytest.fixture
def busy(small: Small) -> Iterator[Path]:
    """Tests that are run by name alone."""
    path = small.path / "tests/busy.py"
    path.write_text(BUSY)
    yield path
    path.unlink()


def sweep(
    small: Small,
    complete: Any,
    begin: Callable[[Small], None],
    victims: Iterable[Callable[[Small, int], None]],
    *options: str,
    passed: int = PASSED,
    since: float = 0,
) -> None:
    """Kill a run for each victim, at instants evenly spread over the time that one takes.

    Or over the part of it that follows `since`, a part of 1.
    """
    victims = list(victims)
    begin(small)
    begun = time.monotonic()
    assert small.outcome(*options).counts == {"passed": passed}
    lasts = time.monotonic() - begun
    recoveries = []
    for number, victim in enumerate(victims):
        begin(small)
        run = small.begin(*options)
        instant = lasts * (since + (1 - since) * (number + 0.5) / len(victims))
        time.sleep(instant)
        victim(small, run.pid)
        small.end(run)
        print(f"killed after {instant:.3f} of {lasts:.3f} s: {victim.__name__}, {begin.__name__}")
        recoveries.append(small.healed(complete))
    print(f"{len(recoveries)} runs killed; the longest recovery took {max(recoveries):.2f} s")


def test_killed_runs(small: Small, complete: Any) -> None:
    sweep(small, complete, from_nothing, VICTIMS)


@pytest.mark.slow
def test_killed_while_rows_are_put_back(busy: Path, small: Small, complete: Any) -> None:
    sweep(small, complete, warm, VICTIMS, str(busy), passed=BUSY_PASSED, since=0.4)


@pytest.mark.thorough
@pytest.mark.parametrize("whose", first(1, ["the harness", "anybody"]))
def test_sessions_are_killed_while_rows_are_put_back(
    whose: str, busy: Path, small: Small, complete: Any
) -> None:
    """Those of the harness cost a clone, and no test; those of a test, that test at most."""
    where = "datname ~ '^app_w_'"
    if whose == "the harness":
        where += " AND application_name ~ '^tests.harness'"
    instants = random.Random(1)
    with small.console() as console, ThreadPoolExecutor() as threads:
        run = threads.submit(small.outcome, str(busy))
        service = "datname ~ '^app_w_' AND application_name = ''"
        tests = f"SELECT 1 FROM pg_stat_activity WHERE {service}"
        wait_until(lambda: console.sql(tests), "the first test has run")
        killed = 0
        while not run.done() and killed < MANY:
            terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            killed += console.sql(f"{terminate} WHERE {where}")[0][0]
            time.sleep(instants.uniform(0, 0.1))
        outcome = run.result()
    assert killed > 10
    if whose == "the harness":
        assert (outcome.status, outcome.counts) == (0, {"passed": BUSY_PASSED})
    assert "assert 5 ==" not in outcome.output
    assert "assert 6 ==" not in outcome.output
    small.harness("clean")
    small.healed(complete)


def test_killed_while_it_drops_an_old_golden_database(small: Small, complete: Any) -> None:
    """The next run drops it, even if it builds nothing."""
    with small.console() as console:
        mark = f"SELECT datconnlimit FROM pg_database WHERE datname = '{console.golden()}'"
        ((limit,),) = console.sql(mark)
        for number, begun in enumerate(["datallowconn = false", "datconnlimit = -2"]):
            old = f"app_g_{number:016}"
            console.sql(f"CREATE DATABASE {old} CONNECTION LIMIT {limit}")
            console.sql(f"UPDATE pg_database SET {begun} WHERE datname = '{old}'")
    small.healed(complete, says="swept: 2 ")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
@pytest.mark.parametrize("begin", BEGINNINGS)
def test_kill_sweep(
    begin: Callable[[Small], None], workers: list[str], small: Small, complete: Any
) -> None:
    """Each victim at instants of its own: they take turns."""
    sweep(small, complete, begin, VICTIMS * 2, *workers)
