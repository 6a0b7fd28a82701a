"""What isolation costs a test, in what can be counted: round trips, and rows that are dead."""

from __future__ import annotations

import pytest

from tests.support.small import SQL, Small

CONCERNS = ["*/harness/isolation/*", "*/harness/harness.py"]

ROUND_TRIPS = """\
import pytest
from sqlalchemy import text

from app.database import AsyncSessionLocal
from app.models import Customer
from tests.harness.golden import databases

# Of the harness's own connections, in this process: what it asks, it waits for.
round_trips = []
_wait = databases.Connection.wait


def wait(self, *args, **kwargs):
    round_trips.append(self.info.dbname)
    return _wait(self, *args, **kwargs)


databases.Connection.wait = wait


def since_the_last_test():
    count = len(round_trips)
    round_trips.clear()
    return count


def test_first():
    # A look into the database for each fixture of the session would show.
    assert since_the_last_test() < 40


async def store(number):
    async with AsyncSessionLocal.begin() as session:
        session.add(Customer(full_name="Mallory", email=f"{number}@example.org"))


async def test_stores(db_session):
    await store(1)
    since_the_last_test()


@pytest.mark.parametrize("number", range(5))
async def test_stores_again(number, db_session):
    assert since_the_last_test() <= (1 if number else 6)  # at first, it connects
    await store(number)


async def test_reads(db_session):
    assert since_the_last_test() <= 2
    assert await db_session.get(Customer, 1)


@pytest.mark.parametrize("number", range(3))
async def test_reads_again(number, db_session):
    assert since_the_last_test() == 1
    assert await db_session.get(Customer, 1)


def test_connects_to_nothing():
    since_the_last_test()


@pytest.mark.parametrize("number", range(3))
async def test_connects_to_nothing_again(number):
    assert since_the_last_test() == 0


async def test_asks_for_a_session_and_does_not_use_it(db_session):
    assert since_the_last_test() == 0


@pytest.mark.unit
def test_unit():
    assert since_the_last_test() == 0


@pytest.mark.parametrize("number", range(5))
async def test_changes(number, db_session):
    assert since_the_last_test() <= 2 + (number == 1)  # what the last test did is tried first
    await db_session.execute(text("UPDATE customers SET phone = '4711'"))
    await db_session.commit()


async def test_after_that(db_session):
    assert since_the_last_test() <= 2
"""

DEAD_ROWS = """\
import os

import psycopg
import pytest
from sqlalchemy import text

from app.models import Customer

TESTS = 600
URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")
sizes = []


@pytest.mark.parametrize("number", range(TESTS))
async def test_adds_and_changes(number, db_session):
    db_session.add(Customer(full_name="Mallory", email=f"{number}@example.org"))
    await db_session.execute(text("UPDATE customers SET phone = '4711'"))
    await db_session.commit()
    if number in (TESTS // 4, TESTS - 1):
        with psycopg.connect(URL) as connection:
            size = "SELECT pg_table_size('customers'), pg_indexes_size('customers')"
            sizes.append(connection.execute(size).fetchone())


def test_it_is_as_large_as_ever():
    assert sizes[0] == sizes[1]
"""

LONG_VALUES = (
    SQL
    + """\
import pytest


@pytest.fixture(scope="module", autouse=True)
def texts():
    sql("CREATE TABLE texts (i int, t text)")
    sql("ALTER TABLE texts ALTER t SET STORAGE EXTERNAL")
    sql("INSERT INTO texts SELECT i, repeat('x', 50000) FROM generate_series(1, 10) i")


def test_adds():
    sql("INSERT INTO texts VALUES (0, repeat('x', 50000))")


def test_changes():
    assert sql("SELECT count(*) FROM texts") == [(10,)]
    sql("UPDATE texts SET t = 'x'")


def test_next():
    assert sql("SELECT count(*) FROM texts WHERE length(t) = 50000") == [(10,)]
"""
)


def test_round_trips(small: Small) -> None:
    """None where nobody connected, and one where a test does what the one before it did."""
    small.green()  # so there is a golden database
    outcome = small.tried(ROUND_TRIPS)
    assert outcome.counts == {"passed": 23}, outcome.output[-6000:]


@pytest.mark.thorough
def test_dead_rows_do_not_pile_up(small: Small) -> None:
    outcome = small.tried(DEAD_ROWS, "-q")
    assert outcome.counts == {"passed": 601}, outcome.output[-6000:]
    assert "databases: 600 put back, 0 replaced" in outcome.output


def test_table_of_long_values_is_large(small: Small) -> None:
    """They lie elsewhere: the table's own pages are few."""
    outcome = small.tried(LONG_VALUES)
    assert outcome.counts == {"passed": 3}
    assert "databases: 1 put back," in outcome.output, "what was added"
