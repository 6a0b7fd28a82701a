"""Plugins that run a test again, stop the clock, or bring another loop: judged alone, no hang."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.once import made_once
from tests.support.project import install
from tests.support.small import SQL, Small, told
from tests.support.tiers import first

CONCERNS = [
    "*/harness/plugin.py",
    "*/harness/waiting.py",
    "*/harness/isolation/worker.py",
    "*/harness/checks/tasks.py",
]

PLUGINS = ["pytest-rerunfailures", "pytest-repeat", "freezegun", "time-machine", "trio"]

ATTEMPTS = (
    SQL
    + '''\
import asyncio

import pytest
from sqlalchemy import text

from app.database import AsyncSessionLocal, engine

runs = {}
kept = []


def attempt(name):
    """Each begins with what the seeder stored. Returns which it is."""
    runs[name] = runs.get(name, 0) + 1
    assert sql("SELECT count(*) FROM customers WHERE phone = '4711'") == [(0,)]
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    sql("UPDATE customers SET phone = '4711'")
    sql("DELETE FROM customers WHERE id = 1")
    return runs[name]

@pytest.mark.flaky(reruns=2)
async def test_second_time(db_session):
    assert attempt("second") == 2

@pytest.mark.flaky(reruns=2)
async def test_leaks_at_first(db_session):
    if attempt("leaks") == 1:
        connection = await engine.connect()
        kept.append(connection)
        await connection.execute(text("SELECT 'leaked'"))

@pytest.mark.flaky(reruns=2)
async def test_task_at_first(db_session):
    if attempt("task") == 1:
        kept.append(asyncio.create_task(asyncio.sleep(600)))
        raise AssertionError

@pytest.mark.flaky(reruns=2)
def test_defines_at_first():
    number = attempt("defines")
    assert sql("SELECT to_regclass('defined')") == [(None,)]
    sql("CREATE TABLE defined (i int)")
    assert number == 2

@pytest.mark.flaky(reruns=1)
async def test_never(db_session):
    attempt("never")
    await db_session.execute(text("UPDATE customers SET full_name = 'x'"))
    raise AssertionError

@pytest.fixture
def broken_at_first():
    assert attempt("fixture") == 2

@pytest.mark.flaky(reruns=2)
def test_fixture_at_first(broken_at_first):
    pass

@pytest.mark.unit
@pytest.mark.flaky(reruns=2)
def test_unit():
    runs["unit"] = runs.get("unit", 0) + 1
    if runs["unit"] == 1:
        try:
            sql("SELECT 1")
        except Exception:
            pass

@pytest.mark.repeat(3)
async def test_repeated(db_session):
    attempt("repeated")

@pytest.mark.repeat(3)
@pytest.mark.own_database
def test_repeated_own():
    attempt("repeated own")

@pytest.fixture(scope="class")
def stored():
    sql("INSERT INTO customers (full_name, email) VALUES ('class', 'c@example.org')")

class TestWide:
    @pytest.mark.flaky(reruns=2)
    def test_wide(self, stored):
        runs["wide"] = runs.get("wide", 0) + 1
        assert sql("SELECT count(*) FROM customers") == [(6,)]
        sql("DELETE FROM customers")
        assert runs["wide"] == 2
    def test_wide_next(self, stored):
        assert sql("SELECT count(*) FROM customers") == [(6,)]
'''
)

FROZEN = (
    SQL
    + """\
import datetime
import os
import time

import freezegun
import psycopg
import pytest
import time_machine
from sqlalchemy import text

from app.database import engine
from tests.harness.environment import current
from tests.harness.golden import databases
from tests.harness.waiting import polls

PAST = datetime.datetime(2001, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
TOOLS = {
    "freezegun": lambda: freezegun.freeze_time(PAST),
    "freezegun ticking": lambda: freezegun.freeze_time(PAST, tick=True),
    "freezegun with the loop": lambda: freezegun.freeze_time(PAST, real_asyncio=True),
    "time-machine": lambda: time_machine.travel(PAST, tick=False),
    "time-machine ticking": lambda: time_machine.travel(PAST),
}
SCOPE = os.environ["SCOPE"]
kept = []


@pytest.fixture(scope=SCOPE, params=TOOLS, autouse=True)
def frozen(request):
    with TOOLS[request.param]():
        yield


async def test_stores(db_session):
    assert datetime.datetime.now(datetime.UTC).year == 2001
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    await db_session.execute(text("DELETE FROM customers WHERE id = 1"))
    await db_session.commit()


async def test_leaks(db_session):
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    connection = await engine.connect()
    kept.append(connection)
    await connection.execute(text("DELETE FROM customers WHERE id = 1"))


def test_leaks_by_psycopg():
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    connection = psycopg.connect(URL)
    kept.append(connection)
    connection.execute("DELETE FROM customers WHERE id = 1")


def test_defines():
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    sql("CREATE TABLE hostile (i int)")


def test_drops_the_database():
    with psycopg.connect(current.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {current.database} WITH (FORCE)")


def test_looks_that_take_long():
    looks = [time.sleep(0.1) for _ in polls(0.25)]
    assert 3 <= len(looks) <= 5


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(databases, "_PATIENCE", 0.2)
    with (
        databases.connect(current) as connection,
        pytest.raises(psycopg.OperationalError, match="does not answer any more"),
    ):
        connection.execute("SELECT pg_sleep(5)")


async def test_again(db_session):
    assert sql("SELECT count(*) FROM customers") == [(5,)]
"""
)


TRIO = """\
import pytest

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


async def test_sleeps():
    import anyio

    await anyio.sleep(0)
"""


@pytest.fixture
def extended(small: Small, shared: Path) -> Small:
    """The small service in an environment that has those plugins as well."""

    def make(environment: Path) -> None:
        python = install(small, environment).python
        pip: list[str | Path] = [os.environ["UV"], "pip", "install", "--quiet", "--python", python]
        run(*pip, *PLUGINS, cwd=small.path, timeout=600)

    environment = made_once(shared / "plugins", make)
    return dataclasses.replace(small, python=environment / "bin" / "python")


def test_each_attempt_begins_clean_and_is_judged_alone(extended: Small) -> None:
    outcome = extended.tried(ATTEMPTS)
    assert outcome.counts == {"passed": 15, "failed": 1, "rerun": 9}, outcome.output
    assert told(outcome.output).keys() == {"never"}
    assert "1 leaked sessions" in outcome.output, "of an attempt that failed for it"
    extended.harness("clean")


def test_anyio_on_trio(extended: Small) -> None:
    """Where no loop of asyncio runs."""
    outcome = extended.tried(TRIO, "-o", "asyncio_mode=strict")
    assert (outcome.status, outcome.counts) == (0, {"passed": 2}), outcome.output


@pytest.mark.thorough
@pytest.mark.parametrize("scope", first(1, ["session", "module", "function"]))
def test_clock_that_is_stopped(scope: str, extended: Small) -> None:
    outcome = extended.tried(FROZEN, SCOPE=scope, timeout=60)
    assert outcome.counts == {"passed": 40, "error": 10}, outcome.output
    found = told(outcome.output)
    assert found.keys() == {"leaks", "leaks_by_psycopg"}
    for said in found.values():
        assert said.count("The test left database sessions open") == 5
