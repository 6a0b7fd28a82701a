"""A server that others use, too: nothing of theirs is changed, whatever it is called."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from tests.conftest import Render
from tests.support import postgres, redis
from tests.support.machine import kill, linux_only, started_with
from tests.support.postgres import Server
from tests.support.redis import Redis
from tests.support.small import PASSED, SQL, Small, passed, small_service, wait_until
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = [
    "*/harness/golden/databases.py",
    "*/harness/valkey.py",
    "*/harness/servers/valkey.py",
    "*/harness/servers/postgres.py",
]

pytestmark = linux_only

MARK = 1_070_777  # our connection limit, see tests/harness/golden/databases.py
NOTES = '{"fingerprint": "0123456789abcdef", "project": "/", "built": "2000-01-01T00:00:00"}'

LONG = "app_w_0badcafe_".ljust(63, "m")

# Without a host, libpq's default in the server: that of whoever runs a Postgres on this machine.
NO_HOST = (
    SQL
    + """
THERE = "dblink('dbname=' || current_database(), 'SHOW data_directory') AS there (folder text)"


def test_dblink():
    sql("CREATE EXTENSION dblink")
    assert sql(f"SELECT folder FROM {THERE}") == sql("SHOW data_directory")
"""
)

# Names, owners and options of databases that are not the harness's.
NEIGHBOURS = [
    # Ours in every respect but one: the owner, or the mark.
    (
        "app_g_0123456789abcdef",
        "other",
        f"IS_TEMPLATE true ALLOW_CONNECTIONS false CONNECTION LIMIT {MARK}",
    ),
    ("app_w_0badcafe_main", "other", f"CONNECTION LIMIT {MARK}"),
    ("app_b_0123456789abcdef_0badcafe_0badcafe", "other", f"CONNECTION LIMIT {MARK}"),
    ("app_g_fedcba9876543210", "{us}", "IS_TEMPLATE true ALLOW_CONNECTIONS false"),
    ("app_w_0badcafe_gw0", "{us}", ""),
    ("app_s_0badcafe_main_1", "{us}", "CONNECTION LIMIT 7"),
    ("app_d_0badcafe_main_2", "{us}", f"CONNECTION LIMIT {MARK - 1}"),
    ("app_k_0badcafe_main_3", "{us}", "CONNECTION LIMIT 0"),
    (LONG, "{us}", ""),
    (LONG[:-1] + "n", "other", f"CONNECTION LIMIT {MARK}"),
    # Ours but for the name.
    ("app_precious", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("app_g_precious", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("app_g_0123456789abcde", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("app_g_0123456789abcdef0", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("APP_G_0123456789ABCDEF", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("App_w_0badcafe_main", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("app%w%0badcafe%main", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("appxgx0123456789abcdef", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("myapp_w_0badcafe_main", "{us}", f"CONNECTION LIMIT {MARK}"),
    (" app_w_0badcafe_main", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("app_w_0badcafe_main\n", "{us}", f"CONNECTION LIMIT {MARK}"),
    ('app_w_0badcafe_main"; DROP DATABASE app_precious; --', "{us}", f"CONNECTION LIMIT {MARK}"),
    ("app_w_0badcafe_mäin", "{us}", f"CONNECTION LIMIT {MARK}"),
    ("shop", "{us}", ""),
]


@pytest.fixture(scope="module")
def service(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """The small service, with Redis."""
    path = tmp_path_factory.mktemp("foreign") / "service"
    with small_service(rendered(**{**ALL_OFF, "use_redis": True}), path) as small:
        (small.path / "tests" / "test_redis.py").write_text(
            "import pytest\n\n\n"
            "@pytest.mark.parametrize('number', range(4))\n"
            "async def test_keys(number, redis_client):\n"
            "    assert await redis_client.keys() in ([], ['tests.harness'])\n"
            "    await redis_client.set('mine', number)\n"
        )
        yield small


@pytest.fixture(scope="module")
def server(service: Small) -> Iterator[Server]:
    """A server, and a role that may make databases on it, but is no superuser."""
    with postgres.packaged(service) as binaries, postgres.running(binaries) as server:
        server.sql("CREATE ROLE runner LOGIN CREATEDB")
        server.sql("CREATE ROLE other LOGIN CREATEDB")
        server.sql('CREATE ROLE "app_w_0badcafe_main" LOGIN')
        server.sql("ALTER ROLE other SET search_path = 'precious'")
        server.sql("COMMENT ON ROLE other IS 'precious'")
        yield server


@pytest.fixture(params=first(1, ["tester", "runner"]))
def role(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """A superuser and another, among whose neighbours the tests run."""
    us = str(request.param)
    server.sql("CREATE DATABASE seed")
    server.sql("CREATE TABLE precious AS SELECT 'precious' AS text", "seed")
    for name, owner, options in NEIGHBOURS:
        server.sql(
            f"CREATE DATABASE {quoted(name)} TEMPLATE seed OWNER {owner.format(us=us)} {options}"
        )
        server.sql(f"COMMENT ON DATABASE {quoted(name)} IS '{NOTES}'")
    yield us
    for name in ["seed", *(name for name, *_ in NEIGHBOURS)]:
        server.sql(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE false")
        server.sql(f"DROP DATABASE {quoted(name)}")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def state(server: Server) -> dict[str, list[str]]:
    """All that is registered on a server, and how often each database was connected to."""
    strangers = "datname <> 'postgres' AND usesysid IS NOT NULL"
    wait_until(
        lambda: not server.sql(f"SELECT 1 FROM pg_stat_activity WHERE {strangers}"), "they leave"
    )
    visits = "SELECT datid, sessions FROM pg_stat_database WHERE datname <> 'postgres' ORDER BY 1"
    return {**server.catalogs(), "visits": server.sql(visits)}


def rows(server: Server) -> dict[str, list[str]]:
    """What is in the neighbours that let anybody in."""
    shut = ("ALLOW", "LIMIT 0")
    names = [n for n, _, options in NEIGHBOURS if not any(word in options for word in shut)]
    return {name: server.sql("TABLE precious", name) for name in names}


def check(server: Server, before: dict[str, list[str]]) -> list[str]:
    """All is as before, but for databases that are new. Returns their names."""
    now = state(server)
    added = {name: set(now[name]) - set(before[name]) for name in before}
    for name in ("pg_database", "pg_shdescription", "visits", "pg_db_role_setting"):
        now[name] = [line for line in now[name] if line not in added[name]]
    assert now == before
    return [json.loads(line)["datname"] for line in added["pg_database"]]


def crash(small: Small, reached: Callable[[], object], **variables: str) -> None:
    """Kill a run, and all that it started, in the middle of a test."""
    process = small.begin("tests/test_small.py", LINGER="600", **variables)
    try:
        wait_until(reached, "the run is in its last test")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kill(started_with(small.mark))


def test_databases_of_others_stay_as_they_are(role: str, server: Server, service: Small) -> None:
    url = server.url(role)
    held = rows(server)
    before = state(server)
    outcome = passed(service.outcome("tests/test_small.py", "-n", "2", TEST_DATABASE_URL=url))
    golden = sorted(set(re.findall(r"golden: (\w+)", outcome.output)))
    assert check(server, before) == golden
    lingers = "datname ~ '_main$' AND application_name !~ '^tests.harness'"
    crash(
        service,
        lambda: server.sql(f"SELECT 1 FROM pg_stat_activity WHERE {lingers}"),
        TEST_DATABASE_URL=url,
    )
    assert len(check(server, before)) > 1, "it crashed"
    outcome = passed(service.outcome("tests/test_small.py", TEST_DATABASE_URL=url))
    assert "swept: " in outcome.output
    assert check(server, before) == golden
    service.tool("tests.harness", "clean", env={"TEST_DATABASE_URL": url})
    assert state(server) == before
    assert rows(server) == held


@pytest.mark.thorough
def test_database_named_as_ours_is_left_to_its_owner(server: Server, service: Small) -> None:
    url = server.url("runner")
    golden, _ = passed(service.outcome("tests/test_small.py", TEST_DATABASE_URL=url)).golden()
    service.tool("tests.harness", "clean", env={"TEST_DATABASE_URL": url})
    server.sql(f"CREATE DATABASE {golden} OWNER other CONNECTION LIMIT {MARK}")
    server.sql(f"ALTER DATABASE {golden} IS_TEMPLATE true ALLOW_CONNECTIONS false")
    before = server.catalogs()
    output = service.red("tests/test_small.py", TEST_DATABASE_URL=url)
    assert (
        f"has a database {golden} that the harness did not make, or that another role owns"
        in output
    )
    assert "Traceback" not in output
    service.tool("tests.harness", "clean", env={"TEST_DATABASE_URL": url})
    assert server.catalogs() == before
    server.sql(f"ALTER DATABASE {golden} IS_TEMPLATE false")
    server.sql(f"DROP DATABASE {golden}")


@pytest.mark.thorough
def test_clean_takes_what_was_kept_for_the_user(server: Server, service: Small) -> None:
    url, before = server.url("runner"), server.catalogs()
    failing = service.path / "tests" / "test_fails.py"
    failing.write_text(
        "from sqlalchemy import text\n"
        "async def test_fails(db_engine):\n"
        "    async with db_engine.begin() as connection:\n"
        "        await connection.execute(text('DELETE FROM customers'))\n"
        "    assert False\n"
    )
    try:
        output = service.red("tests/test_fails.py", TEST_DATABASE_URL=url)
    finally:
        failing.unlink()
    assert "kept the database of tests/test_fails.py::test_fails" in output
    assert server.sql("SELECT 1 FROM pg_database WHERE datname ~ '^app_k_'")
    service.tool("tests.harness", "clean", env={"TEST_DATABASE_URL": url})
    assert server.catalogs() == before


@pytest.fixture
def neighbours(service: Small) -> Iterator[Redis]:
    """A Redis with keys of others in each of its databases but 9 and 10."""
    with redis.running(service) as server:
        for number in set(range(redis.DATABASES)) - {9, 10}:
            fill(server, number)
        yield server


def fill(server: Redis, database: int) -> None:
    server.ask(database, "SET", "precious", f"of {database}")
    server.ask(database, "SET", "tests.harness:9", "of somebody else")
    server.ask(database, "SET", "fleeting", "x", "EX", "86400")
    server.ask(database, "RPUSH", b"list\xff\n", "a", "b")


@pytest.mark.thorough
def test_redis_of_others_stays_as_it_is(neighbours: Redis, service: Small) -> None:
    numbers = range(redis.DATABASES)
    before = [neighbours.held(number) for number in numbers]
    url = neighbours.url(9)
    count = {"passed": PASSED + 4}
    outcome = service.outcome("-n", "2", TEST_REDIS_URL=url)
    assert (outcome.status, outcome.counts) == (0, count), outcome.output
    assert [neighbours.held(number) for number in numbers] == before
    crash(service, lambda: neighbours.ask(9, "GET", "tests.harness"), TEST_REDIS_URL=url)
    after = [neighbours.held(number) for number in numbers]
    assert {**after[9], b"tests.harness": None} == {b"tests.harness": None}, "the run's own mark"
    assert after[:9] + after[10:] == before[:9] + before[10:]
    outcome = service.outcome(TEST_REDIS_URL=url)
    assert (outcome.status, outcome.counts) == (0, count)
    service.tool("tests.harness", "clean", env={"TEST_REDIS_URL": url})
    assert [neighbours.held(number) for number in numbers] == before


@pytest.mark.thorough
def test_redis_with_keys_of_others_is_refused(neighbours: Redis, service: Small) -> None:
    fill(neighbours, 9)
    before = [neighbours.held(number) for number in range(redis.DATABASES)]
    for number, says in {
        9: "Database 9 of TEST_REDIS_URL holds keys that are not the tests'",
        0: "Database 1 of TEST_REDIS_URL holds keys that are not the tests'",
        redis.DATABASES: "DB index is out of range",
    }.items():
        output = service.red("tests/test_redis.py", TEST_REDIS_URL=neighbours.url(number))
        assert says in output
        assert "to use the embedded server" in output
        assert "Traceback" not in output
    assert [neighbours.held(number) for number in range(redis.DATABASES)] == before


BEHIND_A_SOCKET = """\
import os
import subprocess
import sys

import redis

PING = "import os, redis; assert redis.Redis.from_url(os.environ['REDIS_URL']).ping()"


def test_pings():
    assert "/my%20redis/" in os.environ["REDIS_URL"]
    exec(PING)
    done = subprocess.run([sys.executable, "-c", PING], capture_output=True, text=True, check=True)
    assert not done.stderr, "what begins each process of Python has failed"
"""


@pytest.mark.thorough
def test_redis_behind_a_socket(service: Small) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "my redis", "socket")
        path.parent.mkdir()
        with redis.running(service, "--unixsocket", str(path)) as server:
            url = f"unix://{quote(str(path))}?db=9"
            outcome = service.tried(BEHIND_A_SOCKET, TEST_REDIS_URL=url)
            assert (outcome.status, outcome.counts) == (0, {"passed": 1}), outcome.output
            assert server.held(9) == {}


def test_sql_that_names_no_host_stays_on_its_server(small: Small) -> None:
    outcome = small.tried(NO_HOST)
    assert (outcome.status, outcome.counts) == (0, {"passed": 1}), outcome.output[-4000:]
