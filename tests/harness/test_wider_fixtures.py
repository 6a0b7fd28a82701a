"""What a fixture of a wider scope than the test stores: there for its scope, whatever tests do."""

from __future__ import annotations

import pytest

from tests.support.small import SQL, Small, told
from tests.support.tiers import first

CONCERNS = [
    "*/harness/isolation/worker.py",
    "*/harness/isolation/putback.py",
    "*/harness/plugin.py",
    "*/harness/fixtures.py",
]

TESTS = (
    SQL
    + '''\
import asyncio
import subprocess
import sys
import unittest

import asyncpg
import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.config import settings
from app.database import AsyncSessionLocal
from app.models import Customer

SEEDED = 5


def add(name):
    """What is added to the customers, and its id."""
    values = f"'{name}', '{name}@example.org'"
    return sql(f"INSERT INTO customers (full_name, email) VALUES ({values}) RETURNING id")[0][0]


def names():
    """Of customers that are not from the seeder."""
    found = sql(f"SELECT full_name FROM customers WHERE id > {SEEDED} ORDER BY id")
    return [name for (name,) in found]


def spoil():
    """Change everything, rows alone."""
    sql("DELETE FROM customers WHERE id = 1")
    sql("UPDATE customers SET full_name = 'spoilt'")
    add("added")


def replace():
    """More than rows: the database is replaced afterwards."""
    sql("CREATE TABLE hostile (i int)")
    spoil()


# --- by every way ---------------------------------------------------------------------------------


async def by_the_service():
    async with AsyncSessionLocal.begin() as session:
        session.add(Customer(full_name="wide", email="wide@example.org"))


async def by_asyncpg():
    connection = await asyncpg.connect(URL)
    await connection.copy_records_to_table(
        "customers", records=[("wide", "wide@example.org")], columns=["full_name", "email"]
    )
    await connection.close()


async def by_psycopg():
    add("wide")


async def by_a_subprocess():
    code = "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])"
    insert = "INSERT INTO customers (full_name, email) VALUES ('wide', 'wide@example.org')"
    subprocess.run([sys.executable, "-c", code, URL, insert], check=True)


async def by_another_loop():
    await asyncio.to_thread(asyncio.run, by_the_service())


WAYS = [by_the_service, by_asyncpg, by_psycopg, by_a_subprocess, by_another_loop]


@pytest_asyncio.fixture(scope="class", params=WAYS, ids=lambda way: way.__name__)
async def wide(request):
    await request.param()
    yield "wide"
    add("teardown")


class TestWide:
    async def test_spoils(self, wide, db_session):
        assert names() == [wide]
        spoil()

    async def test_replaces(self, wide):
        assert names() == [wide]
        assert add("next") == SEEDED + 2
        replace()

    @pytest.mark.own_database
    async def test_in_a_database_of_its_own(self, wide, db_session):
        assert names() == [wide]
        assert add("next") == SEEDED + 2

    def test_again(self, wide):
        assert names() == [wide]


def test_nothing_wide():
    assert names() == []
    assert add("next") == SEEDED + 1


# --- one within the other -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def of_the_session():
    return add("session")


@pytest.fixture(scope="package")
def of_the_package(of_the_session):
    return add("package")


@pytest.fixture(scope="module")
def of_the_module(of_the_package):
    sql("UPDATE customers SET full_name = 'changed' WHERE full_name = 'package'")
    return add("module")


@pytest.fixture(scope="class")
def of_the_class(of_the_module):
    sql("DELETE FROM customers WHERE full_name = 'session'")
    return add("class")


class TestNested:
    def test_before(self, of_the_module):
        assert names() == ["session", "changed", "module"]
        replace()

    @pytest.mark.parametrize("number", range(2))
    def test_within(self, of_the_class, number):
        assert names() == ["changed", "module", "class"]
        spoil() if number else replace()


class TestAfterNested:
    def test_class_is_gone(self, of_the_module):
        assert names() == ["session", "changed", "module"]
        assert add("next") == SEEDED + 4
        spoil()

    def test_class_is_gone_again(self):
        assert names() == ["session", "changed", "module"]


# --- more than rows -------------------------------------------------------------------------------

DEFINITIONS = {
    "table": ("CREATE TABLE defined AS SELECT 1", "DROP TABLE defined"),
    "left": ("CREATE TABLE defined AS SELECT 1", "SELECT 1"),
    "view": ("CREATE VIEW defined AS SELECT 1 FROM customers WHERE id = 1", "SELECT 1"),
    "column": ("ALTER TABLE customers ADD COLUMN defined int", "SELECT 1"),
    "emptied": ("TRUNCATE customers CASCADE; CREATE TABLE defined AS SELECT 1", "SELECT 1"),
    "beside": (
        "DO $$ DECLARE here text := quote_ident(current_database()); BEGIN"
        " EXECUTE 'ALTER DATABASE ' || here || $f$ SET app.search_path = 'it = set'$f$;"
        " EXECUTE 'ALTER DATABASE ' || here || ' SET search_path = public, other';"
        " EXECUTE 'ALTER ROLE CURRENT_USER IN DATABASE ' || here || $f$ SET app.role = 'it''s'$f$;"
        " EXECUTE 'REVOKE ALL ON DATABASE ' || here || ' FROM PUBLIC'; END $$",
        "SELECT 1",
    ),
}
BESIDE = """
    SELECT current_setting('app.search_path', true), current_setting('app.role', true),
           current_setting('search_path'),
           has_database_privilege('pg_monitor', current_database(), 'TEMPORARY')
"""


@pytest.fixture(scope="class", params=DEFINITIONS)
def defined(request):
    begin, end = DEFINITIONS[request.param]
    sql(begin)
    yield request.param
    sql(end)


class TestDefined:
    def check(self, defined):
        if defined == "beside":
            assert sql(BESIDE) == [("it = set", "it's", "public, other", False)]
        elif defined == "column":
            assert sql("SELECT defined FROM customers WHERE id = 3") == [(None,)]
        else:
            assert sql("SELECT * FROM defined") == [(1,)]
        if defined == "emptied":
            assert sql("SELECT count(*) FROM customers") == [(0,)]
        else:
            assert names() == ["session", "changed", "module"]

    def test_spoils(self, of_the_module, defined):
        self.check(defined)
        spoil()

    def test_replaces(self, of_the_module, defined):
        self.check(defined)
        replace()

    def test_again(self, of_the_module, defined):
        self.check(defined)


def test_nothing_is_defined(of_the_module):
    assert sql("SELECT to_regclass('defined')") == [(None,)]
    assert sql(BESIDE) == [(None, None, '"$user", public', True)]
    assert "defined" not in [name for (name,) in sql("SELECT attname FROM pg_attribute")]
    assert names() == ["session", "changed", "module"]


# --- what reacts to rows --------------------------------------------------------------------------


@pytest.fixture(scope="class")
def reacting():
    sql("CREATE TABLE loud AS SELECT 'quiet' AS word; CREATE TABLE heard (word text)")
    sql("CREATE RULE hear AS ON INSERT TO loud DO ALSO INSERT INTO heard VALUES (NEW.word)")


@pytest.fixture(scope="class")
def reacted(reacting):
    sql("INSERT INTO loud VALUES ('loud')")


class TestReacted:
    @pytest.mark.parametrize("number", range(3))
    def test_heard(self, reacted, number):
        assert sql("SELECT word FROM loud ORDER BY 1") == [("loud",), ("quiet",)]
        assert sql("SELECT word FROM heard") == [("loud",)]
        [spoil, replace, spoil][number]()


@pytest.fixture(scope="class")
def holds(reacting):
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute("INSERT INTO loud VALUES ('held')")
        yield


class TestReactedAndHeld:
    def test_heard_beside_a_session(self, holds):
        assert sql("SELECT word FROM heard") == [("held",)]


# --- large tables ---------------------------------------------------------------------------------


@pytest.fixture(scope="class")
def many():
    values = "SELECT repeat('m', 90), i || '@example.org' FROM generate_series(1, 5000) i"
    sql(f"INSERT INTO customers (full_name, email) {values}")


class TestMany:
    @pytest.mark.parametrize("number", range(3))
    def test_many(self, many, number):
        counts = "count(*), count(*) FILTER (WHERE full_name ~ '^m+$')"
        assert sql(f"SELECT {counts} FROM customers") == [(5008, 5000)]
        [spoil, replace, spoil][number]()


def test_no_more_many():
    assert names() == ["session", "changed", "module"]


# --- other ways to say it -------------------------------------------------------------------------


class TestUnittest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        add("unittest")

    @classmethod
    def tearDownClass(cls):
        add("teardown")

    def test_one(self):
        self.assertEqual(names()[3:], ["unittest"])
        spoil()

    def test_two(self):
        self.assertEqual(names()[3:], ["unittest"])
        replace()

    def test_three(self):
        self.assertEqual(names()[3:], ["unittest"])


class TestXunit:
    @classmethod
    def setup_class(cls):
        add("xunit")

    def test_one(self):
        assert names()[3:] == ["xunit"]
        spoil()

    def test_two(self):
        assert names()[3:] == ["xunit"]


# --- sequences alone ------------------------------------------------------------------------------


@pytest.fixture(scope="class")
def counted():
    return sql("SELECT nextval('customers_id_seq') FROM generate_series(1, 100)")[-1][0]


class TestCounted:
    @pytest.mark.parametrize("number", range(2))
    def test_counted(self, counted, number):
        assert add("next") == counted + 1


def test_no_more_counted():
    assert add("next") == SEEDED + 4


# --- sessions that stay open ----------------------------------------------------------------------


@pytest_asyncio.fixture(scope="class")
async def pooled():
    engine = create_async_engine(settings.database_url)
    async with engine.begin() as connection:
        values = "('pooled', 'pooled@example.org')"
        await connection.execute(text(f"INSERT INTO customers (full_name, email) VALUES {values}"))
    yield engine
    await engine.dispose()


class TestPooled:
    @pytest.mark.parametrize("number", range(3))
    async def test_writes(self, pooled, number):
        assert names()[3:] == ["pooled"]
        async with pooled.begin() as connection:
            await connection.execute(text("DELETE FROM customers WHERE full_name = 'pooled'"))
        assert names()[3:] == []

    async def test_finds_what_it_stored(self, pooled, db_session):
        assert names()[3:] == ["pooled"]


@pytest.fixture(scope="class")
def in_a_transaction():
    with psycopg.connect(URL) as connection:
        connection.execute("SELECT 1 FROM customers")
        yield connection
        connection.rollback()


class TestInATransaction:
    @pytest.mark.parametrize("number", range(2))
    def test_open(self, in_a_transaction, number):
        assert in_a_transaction.execute("SELECT count(*) FROM customers").fetchone() == (8,)
        add("beside")


def test_no_more_pooled():
    assert names() == ["session", "changed", "module"]


# --- asked for in the midst of a test -------------------------------------------------------------


@pytest.fixture(scope="class")
def settings_alone():
    return {"a": 1}


@pytest.fixture(scope="class")
def reads():
    return names()


@pytest.fixture(scope="class")
def late():
    return add("late")


class TestLate:
    def test_nothing_of_the_database(self, request):
        add("before")
        assert request.getfixturevalue("settings_alone") == {"a": 1}

    async def test_reads(self, request, db_session):
        db_session.add(Customer(full_name="before", email="before@example.org"))
        await db_session.flush()
        assert request.getfixturevalue("reads") == ["session", "changed", "module"]
        await db_session.commit()

    def test_put_back(self):
        assert names() == ["session", "changed", "module"]

    async def test_stores(self, request, db_session):
        await db_session.execute(text("SELECT 1"))
        request.getfixturevalue("late")
        await db_session.execute(text("DELETE FROM customers WHERE id < 3"))
        await db_session.commit()

    def test_stored(self, late):
        assert names()[3:] == ["late"]
        assert sql("SELECT count(*) FROM customers") == [(9,)]


def test_no_more_late():
    assert names() == ["session", "changed", "module"]
    assert sql("SELECT count(*) FROM customers") == [(8,)]
'''
)

PASSED = 74

LATE = (
    SQL
    + """\
import pytest


def add(name):
    sql(f"INSERT INTO customers (full_name, email) VALUES ('{name}', '{name}@example.org')")


def names():
    return [name for (name,) in sql("SELECT full_name FROM customers WHERE id > 5 ORDER BY id")]


def spoil():
    sql("DELETE FROM customers WHERE id > 3")


def replace():
    spoil()
    sql("CREATE TABLE hostile (i int)")


@pytest.fixture(scope="class")
def of_the_class():
    sql("UPDATE customers SET phone = '1' WHERE id = 1")
    add("class")


@pytest.fixture(scope="session")
def of_the_session():
    add("session")
    sql("UPDATE customers SET phone = '2' WHERE id = 2")


class TestFirst:
    def test_class(self, of_the_class):
        assert names() == ["class"]

    def test_session_is_asked_for_later(self, of_the_class, of_the_session):
        assert names() == ["class", "session"]
        spoil()

    def test_both(self, of_the_class):
        assert names() == ["class", "session"]
        replace()

    def test_both_again(self):
        assert names() == ["class", "session"]
        assert sql("SELECT id FROM customers WHERE phone IN ('1', '2') ORDER BY 1") == [(1,), (2,)]


class TestSecond:
    def test_session_alone(self):
        assert names() == ["session"]
        replace()

    def test_again(self, of_the_session):
        assert names() == ["session"]
        assert sql("SELECT id FROM customers WHERE phone IN ('1', '2')") == [(2,)]


@pytest.fixture(scope="module")
def of_the_module():
    add("module")
    sql("CREATE TABLE defined AS SELECT 1")


class TestThird:
    def test_class(self, of_the_class):
        assert names() == ["session", "class"]

    def test_module_is_asked_for_later(self, of_the_class, of_the_module):
        assert names() == ["session", "class", "module"]
        replace()

    def test_both(self, of_the_class):
        assert names() == ["session", "class", "module"]
        assert sql("SELECT * FROM defined") == [(1,)]


class TestFourth:
    def test_module_and_session(self):
        assert names() == ["session", "module"]
        replace()

    def test_again(self):
        assert names() == ["session", "module"]
        assert sql("SELECT * FROM defined") == [(1,)]
        assert sql("SELECT id FROM customers WHERE phone IN ('1', '2')") == [(2,)]
"""
)

# What a fixture may not do, and what it is told.
REFUSED = (
    SQL
    + """\
import psycopg
import pytest

ADD = "INSERT INTO customers (full_name, email) VALUES ('Mallory', '{}@example.org')"
LEAKED = []


def names():
    assert sql("SELECT to_regclass('defined')") == [(None,)]
    return [name for (name,) in sql("SELECT email FROM customers WHERE id > 5 ORDER BY id")]


@pytest.fixture(scope="class")
def stores():
    sql(ADD.format("stores"))


class TestInTheMidst:
    def test_stores_late(self, request):
        sql(ADD.format("before"))
        request.getfixturevalue("stores")

    def test_passes_1(self):
        assert names() == []


@pytest.fixture(scope="class")
def defines_and_holds():
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute("CREATE TABLE defined (i int)")
        connection.execute("SELECT 'held by the fixture', pg_stat_force_next_flush()")
        yield


class TestHolds:
    def test_holds(self, defines_and_holds):
        pass


def test_passes_2():
    assert names() == []


@pytest.fixture(scope="class")
def fails():
    sql(ADD.format("fails"))
    raise RuntimeError("on purpose")


class TestFails:
    def test_fails_in_its_fixture(self, fails):
        pass

    def test_passes_3(self):
        assert names() == []


@pytest.fixture(scope="class")
def leaks():
    connection = psycopg.connect(URL)
    yield
    connection.execute("SELECT 'leaked by the fixture'")
    sql(ADD.format("leaks"))
    LEAKED.append(connection)


class TestLeaks:
    def test_passes_4(self, leaks):
        pass

    def test_last_of_its_class(self, leaks):
        assert names() == []


def test_passes_5():
    assert names() == []


@pytest.fixture(scope="module")
def changes_what_stores_stored():
    sql("UPDATE customers SET email = 'changed' WHERE email = 'stores@example.org'")


class TestChanged:
    def test_passes_6(self, stores):
        assert names() == ["stores@example.org"]

    def test_changed(self, stores, changes_what_stores_stored):
        assert names() == ["changed"]


def test_passes_7():
    assert names() == []


@pytest.fixture(scope="class")
def defines():
    sql("CREATE TABLE defined (i int)")


@pytest.fixture(scope="module")
def stores_for_all():
    sql(ADD.format("all"))


class TestDefined:
    def test_passes_8(self, defines):
        assert sql("SELECT count(*) FROM defined") == [(0,)]

    def test_defined(self, defines, stores_for_all):
        assert sql("SELECT count(*) FROM defined") == [(0,)]


def test_passes_9():
    assert names() == []
"""
)

SAYS = {
    "stores_late": "but was asked for in the midst of a test that had changed the database",
    "holds": "The fixture defines_and_holds changed more than rows of small tables",
    "fails_in_its_fixture": "on purpose",
    "last_of_its_class": "A fixture left database sessions open",
    "changed": "The fixture stores ends before changes_what_stores_stored",
    "defined": "The fixture defines ends before stores_for_all",
}

# Postgres counts what a session writes at once, or up to ten seconds later.
HELD = (
    SQL
    + """\
import psycopg
import pytest

STATE = '''
    SELECT (SELECT count(*) FROM large), (SELECT sum(i) FROM large), to_regclass('made'),
           obj_description('customers'::regclass), (SELECT count(*) FROM customers)
'''
WHOLE = [(5000, 12502500, None, None, 5)]


@pytest.fixture(scope="module", autouse=True)
def large():
    sql("CREATE TABLE large AS SELECT i, repeat('x', 200) FROM generate_series(1, 5000) i")


def hold():
    connection = psycopg.connect(URL, autocommit=True)
    connection.execute("SELECT FROM large")  # is counted; what follows within a second is not
    return connection


@pytest.fixture(scope="class", params=["on", "off"])  # of a server, too
def held(request):
    with hold() as connection:
        connection.execute(f"SET track_activities = {request.param}")
        yield connection


class TestRows:
    @pytest.mark.parametrize("number", range(4))
    def test_rows(self, held, number):
        assert sql(STATE) == WHOLE
        held.execute("INSERT INTO large VALUES (0)")
        if number % 2:
            sql("INSERT INTO large VALUES (0)")
            held.execute("DELETE FROM customers")

    def test_fails(self, held):
        held.execute("DELETE FROM customers")
        raise RuntimeError("on purpose")

    def test_the_same_session(self, held):
        assert held.execute(STATE).fetchall() == WHOLE


MORE = [
    "UPDATE large SET i = -1 WHERE i = 1",
    "DELETE FROM large WHERE i = 5000",
    "CREATE TABLE made (i int)",
    "COMMENT ON TABLE customers IS 'of a test'",
]


@pytest.fixture(scope="class", params=MORE)
def session(request):
    with hold() as connection:
        yield connection, request.param


class TestMore:
    def test_more(self, session):
        connection, statement = session
        assert sql(STATE) == WHOLE
        connection.execute(statement)

    def test_next(self, session):
        assert sql(STATE) == WHOLE


def test_last():
    assert sql(STATE) == WHOLE
"""
)

NOT_EXCUSED = (
    SQL
    + """\
import asyncio

import asyncpg
import pytest_asyncio

kept = []


@pytest_asyncio.fixture(scope="module", autouse=True)
async def worker():
    async def work():
        while True:
            await asyncio.create_task(asyncio.sleep(0.01))

    task = asyncio.create_task(work())
    yield
    task.cancel()


async def test_task_of_its_own():
    kept.append(asyncio.create_task(asyncio.sleep(600)))
"""
)

# As in many a conftest.py: it yields nothing.
OVERRIDDEN = """\
import pytest
import pytest_asyncio
from sqlalchemy import text

from app.database import engine


@pytest_asyncio.fixture(scope="session", autouse=True)
async def enterprise_database_setup({arguments}):
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS made (i int)"))
        await connection.execute(text("INSERT INTO made VALUES (1)"))
    yield


@pytest.mark.parametrize("number", range(2))
async def test_session(db_session, number):
    assert await db_session.scalar(text("SELECT count(*) FROM made")) == 1
    await db_session.execute(text("DELETE FROM made"))
    await db_session.commit()


async def test_engine(db_engine):
    async with db_engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM made, customers")) == 5


@pytest.mark.unit
def test_unit():
    pass
"""


@pytest.mark.parametrize("workers", first(1, [[], ["-n", "2"]]), ids=["alone", "two workers"])
def test_fixtures_of_wider_scopes(workers: list[str], small: Small) -> None:
    outcome = small.tried(TESTS, *workers)
    assert (outcome.status, outcome.counts) == (0, {"passed": PASSED}), outcome.output[-6000:]
    assert "no leaked sessions" in outcome.output


@pytest.mark.parametrize(
    "arguments", first(1, ["enterprise_database_setup", ""]), ids=["by itself", "replaced"]
)
def test_setup_that_is_overridden(arguments: str, small: Small) -> None:
    outcome = small.tried(OVERRIDDEN.format(arguments=arguments))
    assert (outcome.status, outcome.counts) == (0, {"passed": 4}), outcome.output[-6000:]


def test_session_that_a_fixture_holds_writes_in_a_test(small: Small) -> None:
    """Whatever it writes is found, counted or not. A test that fails does not end it."""
    outcome = small.tried(HELD)
    counts = {"passed": 19, "failed": 2}
    assert (outcome.status, outcome.counts) == (1, counts), outcome.output[-6000:]
    assert outcome.output.count("so ended 1 sessions that wider fixtures hold") == 4


def test_fixture_of_a_wider_scope_that_is_asked_for_later(small: Small) -> None:
    """When a narrower one is there already, which then goes before it."""
    outcome = small.tried(LATE)
    assert (outcome.status, outcome.counts) == (0, {"passed": 11}), outcome.output[-6000:]


def test_what_a_fixture_may_not_do(small: Small) -> None:
    output = small.tried(REFUSED).output
    found = told(output)
    assert found.keys() == SAYS.keys(), output[-6000:]
    for name, words in SAYS.items():
        assert words in found[name], found[name]
    small.harness("clean")  # the databases of failed tests are kept


def test_what_a_worker_does_not_excuse(small: Small) -> None:
    """A task of the test's own, beside those of a wider fixture."""
    outcome = small.tried(NOT_EXCUSED)
    assert (outcome.status, outcome.counts) == (1, {"passed": 1, "error": 1}), outcome.output
    said = told(outcome.output)["task_of_its_own"]
    assert "left asyncio tasks running" in said, said
