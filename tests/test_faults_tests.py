"""FAULTS 16 to 19, 21, 22: tests that break rules, what they are told, and the next test.

That nothing of theirs is seen by the next one, whatever they do, is what the hostile suite is for.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.machine import linux_only
from tests.support.small import Small

pytestmark = linux_only

# Each test is followed by another one that must find things as they should be.
TESTS = '''\
import asyncio
from contextlib import suppress

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text

from app.database import AsyncSessionLocal, engine
from app.main import create_app
from app.models import Customer

ADD = "INSERT INTO customers (full_name, email) VALUES ('Mallory', 'mallory@example.org')"
COUNT = text("SELECT count(*) FROM customers")
kept = []


async def customers():
    async with AsyncSessionLocal() as session:
        return await session.scalar(select(func.count()).select_from(Customer))


@pytest.fixture(autouse=True)
async def whole(request):
    """Before each test, in the way that it works itself."""
    if "db_session" in request.fixturenames:
        assert await request.getfixturevalue("db_session").scalar(COUNT) == 5


# --- the transaction


async def test_raw_commit(db_session):
    await db_session.execute(text(ADD))
    await db_session.execute(text("COMMIT"))


async def test_raw_rollback(db_session):
    await db_session.execute(text(ADD))
    await db_session.execute(text("ROLLBACK"))
    await db_session.execute(text(ADD))


async def test_passes_1(db_session):
    assert await customers() == 5


async def test_deferred_constraint(db_session):
    await db_session.execute(text("INSERT INTO children VALUES (4711)"))


async def test_deferred_constraint_at_a_commit(db_session):
    async with AsyncSessionLocal() as session:
        await session.execute(text("INSERT INTO children VALUES (4711)"))
        await session.commit()


async def test_passes_deferred_constraint_that_holds_in_the_end(db_session):
    await db_session.execute(text("INSERT INTO children VALUES (4711)"))
    await db_session.execute(text("DELETE FROM children"))


# --- leaks


async def test_leaks_a_session(db_session):
    session = AsyncSessionLocal()
    kept.append(session)
    await session.execute(text("SELECT 'leaked in a rollback'"))


async def test_leaks_a_connection():
    connection = await engine.connect()
    kept.append(connection)
    await connection.execute(text("SELECT 'leaked and idle in a transaction'"))


async def test_leaks_a_task(db_session):
    kept.append(asyncio.create_task(asyncio.sleep(600), name="leaked task"))


async def test_leaks_many_connections():
    for _ in range(20):
        connection = await engine.connect()
        kept.append(connection)
        await connection.execute(text("SELECT 'one of many'"))


async def test_passes_2(db_engine):
    assert await customers() == 5


# --- in the middle of a query


async def test_passes_timed_out(db_session):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await db_session.execute(text("SELECT pg_sleep(60)"))


async def test_timed_out(db_session):
    async with asyncio.timeout(0.1):
        await db_session.execute(text("SELECT pg_sleep(60)"))


async def test_cancelled(db_session):
    asyncio.get_running_loop().call_later(0.1, asyncio.current_task().cancel)
    await db_session.execute(text("SELECT pg_sleep(60)"))


async def test_cancelled_on_connections_of_its_own():
    asyncio.get_running_loop().call_later(0.1, asyncio.current_task().cancel)
    async with engine.begin() as connection:
        await connection.execute(text(ADD))
        await connection.execute(text("SELECT pg_sleep(60)"))


async def test_passes_cancelled_siblings(db_session):
    async def wait():
        async with AsyncSessionLocal() as session:
            await session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await asyncio.gather(*(wait() for _ in range(3)))
    assert await customers() == 5


async def test_passes_3(db_session):
    assert await customers() == 5


# --- deadlocks


@pytest.mark.own_database
async def test_deadlock():
    async def change(first, second):
        async with AsyncSessionLocal.begin() as session:
            await session.execute(text(f"UPDATE customers SET phone = '1' WHERE id = {first}"))
            await asyncio.sleep(0.2)
            await session.execute(text(f"UPDATE customers SET phone = '2' WHERE id = {second}"))

    await asyncio.gather(change(1, 2), change(2, 1))


async def test_passes_4(db_session):
    assert await customers() == 5


# --- event loops


@pytest.mark.asyncio(loop_scope="function")
async def test_passes_in_a_function_loop():
    assert await customers() == 5


@pytest.mark.asyncio(loop_scope="function")
async def test_passes_in_a_function_loop_with_db_engine(db_engine):
    async with db_engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM customers")) == 5


@pytest.mark.asyncio(loop_scope="function")
async def test_function_loop_with_db_session(db_session):
    await db_session.execute(text("SELECT 1"))


@pytest.mark.asyncio(loop_scope="module")
async def test_module_loop_with_db_session(db_session):
    await customers()


def test_passes_asyncio_run():
    assert asyncio.run(customers()) == 5
    assert asyncio.run(customers()) == 5


def test_asyncio_run_with_db_session(db_session):
    asyncio.run(customers())


def test_passes_test_client():
    with TestClient(create_app()) as client:
        body = {"full_name": "Mallory", "email": "mallory@example.org"}
        assert client.post("/api/v1/customers", json=body).status_code == 201
        assert client.get("/health/ready").status_code == 200


def test_test_client_with_db_session(db_session):
    with TestClient(create_app()) as client:
        assert client.get("/api/v1/customers").status_code == 200


@pytest.mark.anyio
async def test_passes_anyio():
    assert await customers() == 5


@pytest.mark.anyio
async def test_anyio_with_db_session(db_session):
    assert await customers() == 5


async def test_passes_threads(db_session):
    assert await asyncio.to_thread(lambda: asyncio.run(asyncio.sleep(0, 5))) == 5
    assert await customers() == 5


async def test_thread_with_a_loop_of_its_own(db_session):
    await asyncio.to_thread(lambda: asyncio.run(customers()))


async def test_passes_5(db_session):
    assert await customers() == 5
'''

LOCKED = """\
from sqlalchemy import text


async def test_waits_for_itself(db_session, db_engine):
    await db_session.execute(text("UPDATE customers SET phone = '1' WHERE id = 1"))
    async with db_engine.begin() as connection:
        await connection.execute(text("UPDATE customers SET phone = '2' WHERE id = 1"))


async def test_passes(db_session):
    assert await db_session.scalar(text("SELECT count(*) FROM customers")) == 5
"""

ANYIO = """\
import pytest
from sqlalchemy import text


@pytest.mark.anyio
async def test_first(db_session):
    await db_session.execute(text("SELECT 1"))


@pytest.mark.asyncio
async def test_passes(db_session):
    await db_session.execute(text("SELECT 1"))


@pytest.mark.anyio
async def test_last(db_session):
    await db_session.execute(text("SELECT 1"))
"""

DEFERRED = (
    "import psycopg\n"
    "with psycopg.connect(os.environ['DATABASE_URL'].replace('+asyncpg', '')) as connection:\n"
    "    connection.execute('CREATE TABLE children (parent int REFERENCES customers (id)"
    " DEFERRABLE INITIALLY DEFERRED)')"
)

ENDED = "ended by a raw COMMIT or ROLLBACK"
OWN_LOOP = "The service was called on an event loop of its own"

# What is said of each test that may not pass.
SAYS = {
    "raw_commit": [ENDED, "own_database"],
    "raw_rollback": [ENDED, "own_database"],
    "deferred_constraint": ["A deferred constraint is violated", "children_parent_fkey"],
    "deferred_constraint_at_a_commit": ["children_parent_fkey"],
    "leaks_a_session": ["A transaction was left open", "leaked in a rollback"],
    "leaks_a_connection": [
        "The test left database sessions open",
        "idle in transaction",
        "leaked and idle in a transaction",
    ],
    "leaks_a_task": ["The test left asyncio tasks running", "leaked task, sleep"],
    "leaks_many_connections": ["The test left database sessions open", "one of many"],
    "timed_out": ["TimeoutError"],
    "cancelled": ["CancelledError"],
    "cancelled_on_connections_of_its_own": ["CancelledError"],
    "deadlock": ["deadlock detected", "WHERE id = 1", "WHERE id = 2", "Process"],
    "function_loop_with_db_session": [OWN_LOOP],
    "module_loop_with_db_session": [OWN_LOOP],
    "asyncio_run_with_db_session": [OWN_LOOP],
    "test_client_with_db_session": [OWN_LOOP],
    "thread_with_a_loop_of_its_own": [OWN_LOOP],
    "anyio_with_db_session": [OWN_LOOP],
}


def results(small: Small, tests: str, *options: str, seed: str = "") -> dict[str, str]:
    """What a run says of each test that does not pass."""
    name = small.path / "tests/test_faults.py"
    name.write_text(tests)
    try:
        output = small.outcome(*options, str(name), SEED=seed).output
    finally:
        name.unlink()
    for words in ("INTERNALERROR", "attached to a different loop", "Event loop is closed"):
        assert words not in output, output[output.index(words) - 3000 :][:4000]
    found: dict[str, str] = {}
    _, *parts = re.split(r"^_+ (?:ERROR at \w+ of )?test_(\w+)(?:\[\w+\])? _+$", output, flags=re.M)
    for test, said in zip(parts[::2], parts[1::2], strict=True):
        found[test] = found.get(test, "") + said
    return found


@pytest.mark.parametrize(
    "workers", [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)], ids=["alone", "two workers"]
)
def test_broken_rules(workers: list[str], small: Small, complete: Any) -> None:
    small.edit_seeder()
    found = results(small, TESTS, *workers, seed=DEFERRED)
    small.harness("clean")  # the databases of failed tests are kept
    small.healed(complete)
    assert found.keys() == SAYS.keys()
    for name, wanted in SAYS.items():
        for words in wanted:
            assert words in found[name], f"{name} is not told {words!r}, but:\n{found[name]}"


def test_anyio_first_and_last(small: Small) -> None:
    """It would run the session's fixtures on a loop that ends with the test."""
    found = results(small, ANYIO)
    assert found.keys() == {"first", "last"}
    assert all(OWN_LOOP in said for said in found.values())
    assert results(small, ANYIO, "-o", "asyncio_mode=strict") == {}
    small.harness("clean")


@pytest.mark.slow
def test_lock_that_nobody_gives_back(small: Small, complete: Any) -> None:
    found = results(small, LOCKED)
    assert list(found) == ["waits_for_itself"]
    said = found["waits_for_itself"]
    assert "canceling statement due to lock timeout" in said
    assert "phone = '2'" in said
    assert "the test's transaction: UPDATE customers SET phone = '1'" in said
    small.harness("clean")
    small.healed(complete)
