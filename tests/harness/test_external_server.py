"""`TEST_DATABASE_URL`: a rendered service's tests on a Postgres of the user's own.

That is an installed one, from Debian's packages or named by META_POSTGRES_BIN, where there is one;
or else the programs of the embedded one, run as a server of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Render
from tests.faults.test_foreign import MARK
from tests.harness.test_wider_fixtures import PASSED as WIDER_FIXTURES_PASSED
from tests.harness.test_wider_fixtures import TESTS as WIDER_FIXTURES
from tests.support import postgres
from tests.support.postgres import Server
from tests.support.project import Project
from tests.support.small import Small, passed
from tests.variants import ONE_FILE, VARIANTS

CONCERNS = ["*/harness/servers/guard.py", "*/harness/servers/urls.py"]

CLONE = r"where more changed, a clone \(\d+ ms to make\)"


@contextmanager
def running(project: Project, *, pgvector: bool) -> Iterator[Server]:
    """A new server, and a role on it that may do what it needs and no more."""
    installed = postgres.installed(pgvector=pgvector)
    with postgres.packaged(project) as binaries, postgres.running(installed or binaries) as server:
        # pgvector takes a superuser; nothing else does.
        server.sql(f"CREATE ROLE runner LOGIN CREATEDB {'SUPERUSER' if pgvector else ''}")
        yield server


@pytest.mark.slow
def test_suite_is_green_and_touches_nothing_foreign(rendered: Render) -> None:
    variant = VARIANTS["no assistant"]
    project = rendered(**variant.answers)
    with running(project, pgvector=True) as server:
        server.configure_otherwise()
        before = server.catalogs()
        env = {"TEST_DATABASE_URL": server.url("runner", scheme="postgres")}
        files, passed = ONE_FILE
        first = project.pytest("--no-cov", *files, env=env, passed=passed)
        golden, story = first.golden()
        assert "built" in story
        assert re.search(f"after a test: rows are put back; {CLONE}$", first.output, re.M)
        env = {"TEST_DATABASE_URL": server.url("runner")}
        options = ("--no-cov", "-n", "2", "-m", "integration")
        parallel = project.pytest(*options, env=env, passed=variant.integration)
        assert parallel.golden() == (golden, "reused")
        names = server.sql("SELECT datname FROM pg_database WHERE datname ~ '^app'")
        assert names == [golden], "it alone stays"
        project.tool("tests.harness", "clean", env=env)
        assert server.catalogs() == before


@pytest.mark.slow
def test_service_without_pgvector_needs_neither_it_nor_a_superuser(rendered: Render) -> None:
    variant = VARIANTS["all off"]
    service = rendered(**variant.answers)
    with running(service, pgvector=False) as server:
        env = {"TEST_DATABASE_URL": server.url("runner")}
        run = service.pytest("--no-cov", "-n", "2", env=env, passed=variant.passed)
        # Of another project, and newer: what psql opens is this one's.
        another = "app_g_ffffffffffffffff"
        server.sql(f"CREATE DATABASE {another} OWNER runner CONNECTION LIMIT {MARK}")
        server.sql(f"""COMMENT ON DATABASE {another} IS '{{"project": "/elsewhere"}}'""")
        env |= {"PATH": f"{server.binaries}:{os.environ['PATH']}"}
        query = "SELECT count(*) FROM customers"
        opened = service.tool("tests.harness", "psql", "--", "-Atc", query, env=env)
        assert opened.output.strip() == "5"
        assert f"{another} " in service.tool("tests.harness", "status", env=env).output
    way = f"after a test: rows that were added are put back; {CLONE}: runner is no superuser"
    assert re.search(way, run.output)


@pytest.mark.thorough
def test_server_without_md5(small: Small) -> None:
    """OpenSSL has none where FIPS 140 is enforced; here, nobody may call it."""
    with running(small, pgvector=False) as server:
        server.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true")
        for database in ("template0", "postgres"):
            server.sql("REVOKE EXECUTE ON FUNCTION md5(text), md5(bytea) FROM PUBLIC", database)
        passed(small.outcome("tests/test_small.py", TEST_DATABASE_URL=server.url("runner")))


# What stands in the way of a role that is no superuser, and what its tests do all the same.
OBSTACLES = """\
import psycopg
with psycopg.connect(os.environ['DATABASE_URL'].replace('+asyncpg', '')) as connection:
    connection.execute('''
        CREATE TABLE grandparents (id int PRIMARY KEY);
        CREATE TABLE parents (id int PRIMARY KEY, parent int REFERENCES grandparents);
        CREATE TABLE children (parent int REFERENCES parents ON DELETE RESTRICT);
        CREATE TABLE pairs (id int PRIMARY KEY, other int REFERENCES pairs);
        CREATE TABLE log (line text);
        CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN INSERT INTO log VALUES (TG_OP); RETURN NULL; END $$;
        CREATE TABLE logged (id int);
        CREATE TRIGGER log AFTER INSERT OR DELETE ON logged FOR EACH ROW EXECUTE FUNCTION log();
        CREATE TABLE tenants (tenant text DEFAULT 'one');
        ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
        ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
        CREATE POLICY own ON tenants USING (tenant = current_setting('app.tenant', true));
        INSERT INTO grandparents VALUES (1);
        INSERT INTO parents VALUES (1, 1);
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET seq_page_cost = 2', current_database()); END $$;
    ''')
"""

NO_SUPERUSER = """\
import os

import psycopg
import pytest

URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")
TABLES = "grandparents", "parents", "children", "pairs", "log", "logged", "tenants"
DONE = {
    "family": "INSERT INTO grandparents VALUES (2); INSERT INTO parents VALUES (2, 2);"
    "INSERT INTO children VALUES (1), (2)",
    "child": "INSERT INTO children VALUES (1)",
    "pair": "INSERT INTO pairs VALUES (1, NULL), (2, 1); INSERT INTO pairs VALUES (3, 2)",
    "logged": "INSERT INTO logged VALUES (1)",
    "tenant": "SET app.tenant = 'one'; INSERT INTO tenants DEFAULT VALUES",
    "changed": "UPDATE parents SET parent = NULL",
    "gone": "DELETE FROM parents",
    "defined": "CREATE TABLE hostile (i int)",
    "sequence": "SELECT nextval('customers_id_seq')",
}


def content(connection):
    assert connection.execute("SHOW seq_page_cost").fetchone() == ("2",)
    connection.execute("SET app.tenant = 'one'")
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in TABLES)
    found = connection.execute(
        f"SELECT {counts}, to_regclass('hostile'), (SELECT parent FROM parents WHERE id = 1), "
        "(SELECT last_value FROM customers_id_seq)"
    )
    return found.fetchone()


@pytest.mark.parametrize("time", range(2))
@pytest.mark.parametrize("what", DONE)
def test_puts_back(what, time):
    with psycopg.connect(URL) as connection:
        assert content(connection) == (1, 1, 0, 0, 0, 0, 0, None, 1, 5)
        connection.execute(DONE[what])
    with psycopg.connect(URL) as connection:
        assert content(connection) != (1, 1, 0, 0, 0, 0, 0, None, 1, 5)


def test_last():
    with psycopg.connect(URL) as connection:
        assert content(connection) == (1, 1, 0, 0, 0, 0, 0, None, 1, 5)
"""


STORES_AND_STAYS = """\
import os

import psycopg
import pytest


@pytest.fixture(scope="module")
def stays():
    with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:
        connection.execute("INSERT INTO customers (full_name, email) VALUES ('A', 'a@example.org')")
        connection.commit()
        yield


def test_stored(stays):
    pass
"""


@pytest.mark.thorough
def test_without_rights_of_a_superuser(small: Small) -> None:
    """Foreign keys, triggers and row-level security are in the way, and nothing is left."""
    with running(small, pgvector=False) as server:
        url = server.url("runner")
        outcome = small.tried(NO_SUPERUSER, SEED=OBSTACLES, TEST_DATABASE_URL=url)
        assert outcome.counts == {"passed": 19}, outcome.output[-6000:]
        assert " put back, 10 replaced" in outcome.output, "of 19: those that did more than add"
        # What a fixture stores is copied, which open sessions of it are in the way of. Settings of
        # one's own, a superuser alone gives to a database.
        others = ("-k", "not (transaction or late or beside)")
        passed = small.tried(
            WIDER_FIXTURES, *others, timeout=300, TEST_DATABASE_URL=url
        ).counts.pop("passed")
        assert passed == WIDER_FIXTURES_PASSED - 12
        outcome = small.tried(STORES_AND_STAYS, TEST_DATABASE_URL=url)
        assert outcome.counts == {"error": 1}
        assert "The fixture stays stored something, and runner is no superuser" in outcome.output
