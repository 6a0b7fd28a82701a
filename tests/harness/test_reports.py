"""What the report of a failed test says beside the failure, and the database that it leaves."""

from __future__ import annotations

import re
import signal

import pytest

from tests.support.small import Small, told
from tests.support.tiers import first

CONCERNS = [
    "*/harness/plugin.py",
    "*/harness/harness.py",
    "*/harness/errors.py",
    "*/harness/checks/uncommitted.py",
]

BEGIN = """\
import asyncio
import contextlib
import os
import time

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.database import AsyncSessionLocal
from app.main import create_app
from app.models import Customer

URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")
ADD = "INSERT INTO customers (full_name, email) VALUES ('{0}', '{0}@example.org')"


def sql(statement):
    with psycopg.connect(URL, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def mallory():
    return Customer(full_name="Mallory", email="mallory@example.org")


"""

NOT_COMMITTED = f'''{BEGIN}\
async def test_flushed(db_session):
    db_session.add(mallory())
    await db_session.flush()
    async with AsyncSessionLocal() as session:
        assert await session.scalar(text("SELECT count(*) FROM customers")) == 6


async def test_added(db_session):
    db_session.add(mallory())
    assert sql("SELECT count(*) FROM customers") == [(6,)]


async def test_changed(db_session):
    customer = await db_session.get(Customer, 1)
    customer.full_name = "Changed"
    assert sql("SELECT full_name FROM customers WHERE id = 1") == [("Changed",)]


async def test_executed(db_session):
    gone = "WITH gone AS (DELETE FROM customers WHERE id = 1 RETURNING id) SELECT * FROM gone"
    await db_session.execute(text(gone))
    raise AssertionError


async def test_commented(db_session):
    await db_session.execute(text("-- as the guide says\\n/* all */ DELETE FROM customers"))
    raise AssertionError


async def test_nested_comment(db_session):
    await db_session.execute(text("/* as /* the */ guide says */ DELETE FROM customers"))
    raise AssertionError


async def test_before_a_savepoint(db_session):
    await db_session.execute(text("UPDATE customers SET phone = 'before'"))
    async with db_session.begin_nested() as outer:
        await db_session.execute(text("UPDATE customers SET phone = 'within'"))
        await outer.rollback()
    await db_session.execute(text("SAVEPOINT mine"))
    await db_session.execute(text("UPDATE customers SET phone = 'in mine'"))
    await db_session.execute(text("ROLLBACK TO mine"))
    raise AssertionError


async def test_in_a_savepoint(db_session):
    await db_session.execute(text("UPDATE customers SET phone = 'before'"))
    async with db_session.begin_nested(), db_session.begin_nested():
        await db_session.execute(text("UPDATE customers SET phone = 'within'"))
    raise AssertionError


async def test_quiet_rolled_back_to_a_savepoint(db_session):
    with contextlib.suppress(ZeroDivisionError):
        async with db_session.begin_nested():
            async with db_session.begin_nested():
                db_session.add(mallory())
            raise ZeroDivisionError
    raise AssertionError


async def test_in_another_session():
    session = AsyncSessionLocal()
    try:
        await session.execute(text("UPDATE customers SET phone = '4711'"))
        raise AssertionError
    finally:
        OPEN.append(session)  # the fixture closes it


OPEN = []


@pytest.fixture(autouse=True)
async def closed():
    yield
    while OPEN:
        await OPEN.pop().close()


async def test_quiet_committed(db_session):
    db_session.add(mallory())
    await db_session.commit()
    raise AssertionError


async def test_quiet_rolled_back(db_session):
    db_session.add(mallory())
    await db_session.flush()
    await db_session.rollback()
    raise AssertionError


async def test_quiet_reads(db_session):
    await db_session.get(Customer, 1)
    await db_session.execute(text("/* as often as you like */ " * 100 + "SELECT 1"))
    raise AssertionError


async def test_passes(db_session):
    """Nobody cares."""
    db_session.add(mallory())
    await db_session.flush()
'''

LOCKED = f'''{BEGIN}\
async def test_waits(db_session):
    await db_session.execute(text("UPDATE customers SET phone = '1' WHERE id = 1"))
    async with asyncio.timeout(0.5), AsyncSessionLocal.begin() as session:
        await session.execute(text("UPDATE customers SET phone = '2' WHERE id = 1"))


async def test_still_waits(db_session):
    """The one that waits is there when the test has failed."""
    await db_session.execute(text("UPDATE customers SET phone = '1' WHERE id = 1"))
    asyncio.get_running_loop().run_in_executor(
        None, sql, "UPDATE customers SET phone = '3' WHERE id = 1"
    )
    await asyncio.sleep(0.5)
    raise AssertionError
'''

SWALLOWED = f"""{BEGIN}\
@pytest.mark.unit
def test_answered_by_the_service():
    client = TestClient(create_app(), raise_server_exceptions=False)
    assert client.get("/api/v1/customers").status_code == 500


@pytest.mark.asyncio(loop_scope="function")
async def test_caught(db_session):
    try:
        await db_session.execute(text("SELECT 1"))
    except Exception:
        pass


def test_passes():
    client = TestClient(create_app(), raise_server_exceptions=False)
    assert client.get("/api/v1/customers").status_code == 200
"""

KEPT = f"""{BEGIN}\
@pytest.fixture
def committed():
    sql(ADD.format("fixture"))
    raise AssertionError


def test_in_its_fixture(committed):
    pass


@pytest.mark.parametrize("number", range(7))
async def test_fails(number, db_session):
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    sql(ADD.format(f"failed-{{number}}"))
    await db_session.execute(text("CREATE TABLE evidence (i int)"))
    await db_session.commit()
    raise AssertionError


def test_fails_without_a_change():
    assert sql("SELECT count(*) FROM customers") == [(6,)]


def test_passes():
    sql(ADD.format("passed"))


@pytest.mark.xdist_group("last")
def test_fails_when_other_workers_have_ended():
    for _ in range(1000):
        if sql("SELECT count(DISTINCT application_name) FROM pg_stat_activity"
               " WHERE application_name ~ '^tests.harness'") == [(1,)]:
            break
        time.sleep(0.02)
    sql(ADD.format("fixture"))
    raise AssertionError
"""

SERVER = f"""{BEGIN}\
def test_leaves_a_role():
    sql("CREATE ROLE left_by_a_test")


def test_leaves_a_database():
    sql("CREATE DATABASE left_by_a_test")


def test_leaves_a_member():
    sql("GRANT pg_monitor TO pg_signal_backend")


def test_passes():
    sql("CREATE ROLE passes; GRANT pg_monitor TO passes; DROP ROLE passes")


def test_passes_later():
    sql("REVOKE pg_monitor FROM pg_signal_backend")
    sql("DROP ROLE left_by_a_test")
    sql("DROP DATABASE left_by_a_test")
"""

LEAVES = {
    "leaves_a_role": "the role left_by_a_test",
    "leaves_a_database": "the database left_by_a_test",
    "leaves_a_member": "the member pg_signal_backend of the role pg_monitor",
}

SECTION = "Not committed"


def test_what_was_not_committed(small: Small) -> None:
    found = told(small.tried(NOT_COMMITTED).output)
    assert found.keys() == {
        *("flushed", "added", "changed", "executed", "in_another_session"),
        *("commented", "nested_comment", "before_a_savepoint", "in_a_savepoint"),
        *(
            "quiet_committed",
            "quiet_rolled_back",
            "quiet_rolled_back_to_a_savepoint",
            "quiet_reads",
        ),
    }
    for name, said in found.items():
        assert (SECTION in said) == (not name.startswith("quiet")), said
    sections = {name: said.partition(SECTION)[2] for name, said in found.items()}
    assert "INSERT INTO customers" in sections["flushed"]
    assert "Customer, added to or changed in db_session, not even flushed" in sections["added"]
    assert "Customer, added to or changed in db_session, not even flushed" in sections["changed"]
    assert "DELETE FROM customers WHERE id = 1" in sections["executed"]
    assert "DELETE FROM customers" in sections["commented"]
    assert "DELETE FROM customers" in sections["nested_comment"]
    assert "UPDATE customers SET phone = 'before'" in sections["before_a_savepoint"]
    assert "UPDATE customers SET phone = 'within'" in sections["in_a_savepoint"]
    assert "UPDATE customers SET phone = '4711'" in sections["in_another_session"]
    small.harness("clean")


def test_sessions_that_wait_for_each_other(small: Small) -> None:
    """Both are named, and what they last ran; also where the one that waited was cancelled."""
    found = told(small.tried(LOCKED).output)
    assert found.keys() == {"waits", "still_waits"}
    for said, waiting in ((found["waits"], "'2'"), (found["still_waits"], "'3'")):
        sessions = said.partition("Postgres sessions")[2]
        holds = re.search(
            r"process (\d+),.*not committed: UPDATE customers SET phone = '1'", sessions
        )
        assert holds, said
        assert f"Process holding the lock: {holds[1]}." in said, said
        assert f"UPDATE customers SET phone = {waiting} WHERE id = 1" in said
    assert re.search(r"phone = '3' WHERE id = 1\n    waits for process \d+", found["still_waits"])
    small.harness("clean")


def test_error_of_the_harness_that_was_swallowed(small: Small) -> None:
    outcome = small.tried(SWALLOWED)
    found = told(outcome.output)
    assert found.keys() == {"answered_by_the_service", "caught"}
    assert "UnitTestConnectedError: This test is marked unit" in found["answered_by_the_service"]
    assert "db_session was used on another event loop" in found["caught"]
    assert outcome.counts == {"passed": 2, "failed": 1, "error": 1}


@pytest.mark.parametrize(
    "workers", first(1, [["-n", "2", "--dist", "loadgroup"], []]), ids=["two workers", "alone"]
)
def test_databases_of_failed_tests_are_kept(workers: list[str], small: Small) -> None:
    output = small.tried(KEPT, *workers).output
    kept = dict(
        re.findall(
            r"kept the database of \S+::(\S+)\n +python -m tests\.harness psql (\w+)", output
        )
    )
    assert len(kept) == 5
    assert "test_fails_without_a_change" not in kept
    with small.console() as console:
        assert set(kept.values()) == {name for name in console.look().ours if name[4] == "k"}
        for test, database in kept.items():
            rows = console.sql("SELECT full_name FROM customers WHERE id > 5", database=database)
            number = re.search(r"\d", test)
            assert rows == [[f"failed-{number[0]}" if number else "fixture"]]
            evidence = console.sql("SELECT to_regclass('evidence')", database=database)
            assert (evidence == [["evidence"]]) == bool(number)
        console.close()
    small.harness("clean")


def test_what_a_test_leaves_on_the_server(small: Small) -> None:
    """Nobody takes that away: it may be somebody else's."""
    outcome = small.tried(SERVER)
    found = told(outcome.output)
    assert outcome.counts == {"passed": 5, "error": 3}
    for name, what in LEAVES.items():
        assert "The test left on the server, where nobody takes it away:" in found[name]
        assert f"  {what}" in found[name]


def test_what_somebody_leaves_on_the_server_fails_no_test(small: Small) -> None:
    """Somebody is connected: who made it is not known, but which test ran."""
    with small.console() as console:
        console.sql("SELECT 1")
        outcome = small.tried(SERVER, "-k", "leaves or passes_later")
        assert outcome.counts == {"passed": 4, "deselected": 1}
        assert "left on the server, by" not in outcome.output, "it is gone by the end"
        outcome = small.tried(SERVER, "-k", "leaves")
        assert outcome.counts == {"passed": 3, "deselected": 2}
        for name, what in LEAVES.items():
            line = rf"left on the server, by \S+::test_{name} or by what ran beside it: {what}"
            assert re.search(line, outcome.output)
        console.sql("REVOKE pg_monitor FROM pg_signal_backend")
        console.sql("DROP ROLE left_by_a_test")
        console.sql("DROP DATABASE left_by_a_test")


HOLDS = {
    "the prepared transaction left": "PREPARE TRANSACTION 'left'",
    "the subscription sub": (
        "CREATE SUBSCRIPTION sub CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)"
    ),
}

HOLD = f"""{BEGIN}\
@pytest.mark.parametrize("statement", {list(HOLDS.values())!r}, ids=["prepared", "subscription"])
async def test_holds(statement, db_session):
    connection = await db_session.connection()
    await connection.exec_driver_sql("DELETE FROM customers")
    await connection.exec_driver_sql(statement)
    await db_session.commit()
    assert not os.environ.get("DIES") or os.kill(os.getpid(), 9)


def test_later():
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    assert not sql("SELECT FROM pg_prepared_xacts")
    assert not sql("SELECT FROM pg_subscription")
"""


def test_what_keeps_a_database_from_being_dropped(small: Small) -> None:
    outcome = small.tried(HOLD, "-p", "no:randomly")
    assert outcome.counts == {"passed": 3, "error": 2}
    assert [line for line in HOLDS if f"  {line}" in outcome.output] == list(HOLDS)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["prepared", "subscription"])
def test_what_keeps_a_database_of_a_killed_run_from_being_dropped(name: str, small: Small) -> None:
    file = small.path / "tests" / "test_holds.py"
    file.write_text(HOLD)
    try:
        with small.console() as console:
            assert small.outcome(str(file), "-k", name, DIES="1").status == -signal.SIGKILL
            assert [found[:6] for found in console.look().ours if found[4] != "g"] == ["app_w_"]
            outcome = small.outcome(str(file), "-k", "later")
            assert outcome.counts == {"passed": 1, "deselected": 2}
            assert "swept: 1 databases" in outcome.output
            assert [found for found in console.look().ours if found[4] != "g"] == []
    finally:
        file.unlink()
