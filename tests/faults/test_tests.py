"""FAULTS 16 to 22: tests that go wrong, or where one might think they would; and the next test.

That nothing of theirs is seen by the next one, whatever they do, is what the hostile suite is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import linux_only
from tests.support.small import Small, told
from tests.support.tiers import first

CONCERNS = [
    "*/harness/checks/tasks.py",
    "*/harness/plugin.py",
    "*/harness/fixtures.py",
    "*/harness/harness.py",
    "*/harness/environment.py",
]

pytestmark = linux_only

# Each test is followed by another one that must find things as they should be.
TESTS = '''\
import asyncio
import os
from contextlib import suppress

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text

from app.database import AsyncSessionLocal, engine
from app.main import create_app
from app.models import Customer

ADD = "INSERT INTO customers (full_name, email) VALUES ('Mallory', 'mallory@example.org')"
COUNT = text("SELECT count(*) FROM customers")
URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")
kept = []


async def customers():
    async with AsyncSessionLocal() as session:
        return await session.scalar(select(func.count()).select_from(Customer))


@pytest.fixture(autouse=True)
def whole():
    """Before each test."""
    with psycopg.connect(URL) as connection:
        assert connection.execute("SELECT count(*) FROM customers").fetchone() == (5,)
        assert connection.execute("SELECT count(*) FROM children").fetchone() == (0,)


# --- the transaction


async def test_passes_raw_commit(db_session):
    await db_session.execute(text(ADD))
    await db_session.execute(text("COMMIT"))
    await db_session.rollback()
    assert await customers() == 6


async def test_passes_raw_rollback(db_session):
    await db_session.execute(text(ADD))
    await db_session.execute(text("ROLLBACK"))
    assert await customers() == 5
    await db_session.execute(text(ADD))  # in no transaction
    assert await customers() == 6


async def test_deferred_constraint_at_a_commit(db_session):
    await db_session.execute(text("INSERT INTO children VALUES (4711)"))
    await db_session.commit()


async def test_passes_deferred_constraint_that_holds_in_the_end(db_session):
    await db_session.execute(text("INSERT INTO children VALUES (4711)"))
    await db_session.execute(text("DELETE FROM children"))
    await db_session.commit()


async def test_passes_requests_at_once(db_session):
    async def add(number):
        async with AsyncSessionLocal.begin() as session:
            session.add(Customer(full_name="Mallory", email=f"mallory-{number}@example.org"))

    await asyncio.gather(*(add(number) for number in range(20)))
    assert await customers() == 25


# --- leaks


async def test_leaks_a_session(db_session):
    session = AsyncSessionLocal()
    kept.append(session)
    await session.execute(text("SELECT 'leaked beside db_session'"))


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
    with suppress(Exception):
        await db_session.execute(text("SELECT 1"))


@pytest.fixture
async def used(db_session):
    assert await db_session.scalar(COUNT) == 5


@pytest.mark.asyncio(loop_scope="module")
async def test_module_loop_with_db_session_that_was_used(used, db_session):
    await db_session.execute(text("SELECT 1"))


@pytest.mark.asyncio(loop_scope="function")
async def test_passes_in_a_function_loop_beside_db_session(used, db_session):
    assert await customers() == 5


def test_passes_asyncio_run():
    assert asyncio.run(customers()) == 5
    assert asyncio.run(customers()) == 5


def test_passes_asyncio_run_beside_db_session(used, db_session):
    assert asyncio.run(customers()) == 5


def test_asyncio_run_with_db_session(db_session):
    asyncio.run(db_session.execute(text("SELECT 1")))


def test_passes_test_client():
    with TestClient(create_app()) as client:
        body = {"full_name": "Mallory", "email": "mallory@example.org"}
        assert client.post("/api/v1/customers", json=body).status_code == 201
        assert client.get("/health/ready").status_code == 200


def test_passes_test_client_beside_db_session(used, db_session):
    with TestClient(create_app()) as client:
        assert client.get("/api/v1/customers").status_code == 200


@pytest.mark.anyio
async def test_passes_anyio():
    assert await customers() == 5


@pytest.mark.anyio
async def test_passes_anyio_beside_db_session(db_session):
    assert await customers() == 5


@pytest.mark.anyio
async def test_anyio_with_db_session(db_session):
    """Marked for one plugin, and run by the other: `asyncio_mode` is auto."""
    await db_session.execute(text("SELECT 1"))


async def test_passes_threads(db_session):
    assert await asyncio.to_thread(lambda: asyncio.run(customers())) == 5
    assert await customers() == 5


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
    assert await db_session.scalar(text("SELECT count(*) FROM customers WHERE phone = '1'")) == 0
"""

TASKS = """\
import asyncio

import pytest
import pytest_asyncio
from sqlalchemy import text

from app.database import AsyncSessionLocal

kept = []


async def works():
    while True:
        await asyncio.sleep(0)
        async with AsyncSessionLocal.begin() as session:
            await session.execute(text("UPDATE customers SET phone = '4711'"))


def begin(name):
    kept.append(asyncio.create_task(works(), name=name))


@pytest.fixture(autouse=True)
async def untouched(db_session):
    await asyncio.sleep(0.01)
    assert await db_session.scalar(text("SELECT count(*) FROM customers WHERE phone = '4711'")) == 0


@pytest_asyncio.fixture
async def at_its_begin():
    begin("begun in a fixture")


@pytest_asyncio.fixture
async def at_its_end():
    yield
    begin("begun in a tear-down")


@pytest_asyncio.fixture(scope="module")
async def of_the_module():
    task = asyncio.create_task(asyncio.Event().wait())
    yield task
    task.cancel()


async def test_begins_in_a_fixture(at_its_begin):
    pass


async def test_passes_1():
    pass


async def test_begins_at_the_end(at_its_end):
    pass


async def test_passes_2(of_the_module):
    pass


def run_elsewhere(loop):
    loop.run_until_complete(asyncio.sleep(0))
    loop.create_task(works(), name="begun from outside")


@pytest_asyncio.fixture
async def loop():
    return asyncio.get_running_loop()


def test_is_no_coroutine(loop):
    run_elsewhere(loop)


async def test_passes_3(of_the_module):
    assert not of_the_module.done()


@pytest.mark.asyncio(loop_scope="function")
async def test_passes_4():
    pass


async def numbers():
    try:
        yield 1
    finally:
        await asyncio.sleep(0)


async def test_passes_though_a_generator_is_open():
    async for _ in numbers():
        break
    await asyncio.sleep(0)  # its closing begins
"""

TASKS_LEFT = {
    "begins_in_a_fixture": "begun in a fixture, works",
    "begins_at_the_end": "begun in a tear-down, works",
    "is_no_coroutine": "begun from outside, works",
}

ANYIO = """\
import pytest
from sqlalchemy import func, select

from app.database import AsyncSessionLocal
from app.models import Customer


async def add_one(session):
    assert await session.scalar(select(func.count()).select_from(Customer)) == 5
    session.add(Customer(full_name="Mallory", email="mallory@example.org"))
    await session.commit()
    async with AsyncSessionLocal() as other:
        assert await other.scalar(select(func.count()).select_from(Customer)) == 6


@pytest.mark.anyio
async def test_first(db_session):
    await add_one(db_session)


@pytest.mark.asyncio
async def test_passes(db_session):
    await add_one(db_session)


@pytest.mark.anyio
async def test_last(db_session):
    await add_one(db_session)
"""

PROCESSES = """\
import concurrent.futures
import multiprocessing
import os
import subprocess
import sys

import psycopg
import pytest


def store(name):
    with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:
        values = (name, f"{name}@example.org")
        connection.execute("INSERT INTO customers (full_name, email) VALUES (%s, %s)", values)


def customers():
    with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:
        return connection.execute("SELECT count(*) FROM customers").fetchone()[0]


METHODS = pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())


@METHODS
def test_process(method):
    process = multiprocessing.get_context(method).Process(target=store, args=("process",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert customers() == 6


@METHODS
def test_pool(method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(store, ["one", "two", "three"]))
    assert customers() == 8


def test_program():
    code = f"from {__name__} import store; store('program')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert customers() == 6


def test_nothing_is_left():
    assert customers() == 5
"""

DEFERRED = (
    "import psycopg\n"
    "with psycopg.connect(os.environ['DATABASE_URL'].replace('+asyncpg', '')) as connection:\n"
    "    connection.execute('CREATE TABLE children (parent int REFERENCES customers (id)"
    " DEFERRABLE INITIALLY DEFERRED)')"
)

OWN_LOOP = "db_session was used on another event loop than that of its fixture"

# What is said of each test that may not pass.
SAYS = {
    "deferred_constraint_at_a_commit": ["children_parent_fkey"],
    "leaks_a_session": [
        "The test left database sessions open",
        "idle in transaction",
        "leaked beside db_session",
    ],
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
    "module_loop_with_db_session_that_was_used": [OWN_LOOP],
    "asyncio_run_with_db_session": [OWN_LOOP],
    "anyio_with_db_session": [OWN_LOOP],
}


LIMIT = """\
from sqlalchemy import text


async def test_limit(db_session):
    assert await db_session.scalar(text("SHOW lock_timeout")) == "{}"
"""

DEBUGGER = """\
import sys

if sys.version_info >= (3, 12):
    sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, "debugger")
else:
    sys.settrace(lambda *_: None)
"""


def results(small: Small, tests: str, *options: str, seed: str = "") -> dict[str, str]:
    """What a run says of each test that does not pass."""
    output = small.tried(tests, *options, SEED=seed).output
    for words in ("INTERNALERROR", "attached to a different loop", "Event loop is closed"):
        assert words not in output, output[output.index(words) - 3000 :][:4000]
    return told(output)


@pytest.mark.parametrize("workers", first(1, [[], ["-n", "2"]]), ids=["alone", "two workers"])
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
    """The session's fixtures stay on the session's loop, where each test has another."""
    assert results(small, ANYIO, "-o", "asyncio_mode=strict") == {}


def test_tasks_of_fixtures(small: Small) -> None:
    """They run on the event loop of all tests: begun by a test's own, they go with it."""
    found = results(small, TASKS)
    assert found.keys() == TASKS_LEFT.keys()
    for name, words in TASKS_LEFT.items():
        assert "The test left asyncio tasks running, now cancelled" in found[name]
        assert words in found[name]
    small.harness("clean")


@pytest.mark.parametrize("workers", first(1, [[], ["-n", "2"]]), ids=["alone", "two workers"])
def test_processes_that_import_the_tests(workers: list[str], small: Small) -> None:
    """They have the database of the test that started them."""
    assert results(small, PROCESSES, *workers) == {}


@pytest.mark.slow
def test_lock_that_nobody_gives_back(small: Small, complete: Any) -> None:
    found = results(small, LOCKED)
    assert list(found) == ["waits_for_itself"]
    said = found["waits_for_itself"]
    assert "canceling statement due to lock timeout" in said
    assert "phone = '2'" in said
    assert "idle in transaction, not committed: UPDATE customers SET phone = '1'" in said
    small.harness("clean")
    small.healed(complete)


def test_only_a_debugger_has_all_the_time_there_is(small: Small, tmp_path: Path) -> None:
    """What measures coverage traces as well, and measures that of most runs."""
    (tmp_path / "debugger.py").write_text(DEBUGGER)
    runs = [("10s", "--cov=app"), ("0", "-p debugger"), ("0", "--pdb")]
    for limit, options in runs:
        outcome = small.tried(LIMIT.format(limit), PYTHONPATH=str(tmp_path), PYTEST_ADDOPTS=options)
        assert outcome.counts == {"passed": 1}, outcome.output[-6000:]
