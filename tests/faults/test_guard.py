"""FAULTS 24: what is refused, before anything is written there, and what is said to do instead."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import Render
from tests.support import postgres, wire
from tests.support.machine import linux_only
from tests.support.postgres import Server
from tests.support.small import PASSED, SQL, Small, passed
from tests.variants import ALL_OFF, LEAN, ONE_FILE

CONCERNS = ["*/harness/servers/guard.py", "*/harness/servers/urls.py", "*/harness/errors.py"]

# A run is bounded by this: a refusal takes less than five seconds on an idle machine.
SECONDS = 30

CLOUD_SQL = "host=/cloudsql/desk:europe-west1:tests"
"""Where Google's proxy listens."""

APPLICATION = "postgresql+asyncpg://app:hunter2@localhost/shop"

# Runs in a rendered project: what the guard makes of each of some environments.
JUDGE = """\
import json, os, sys

before = dict(os.environ)
from tests.harness import environment
from tests.harness.errors import HarnessError
from tests.harness.servers import guard

settings = open("pyproject.toml").read()
for case in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(before | case["variables"])
    with open("pyproject.toml", "w") as file:
        allowed = f'[tool.pytest.ini_options]\\nharness_allowed_hosts = {case["allowed"]}'
        file.write(settings.replace("[tool.pytest.ini_options]", allowed))
    with open(".env", "w") as file:
        file.write(case["dotenv"])
    current = environment.prepare(redis_url="REDIS_URL")
    try:
        guard.check_url(current)
        guard.check_redis_url(current)
        print("accepted")
    except HarnessError as error:
        print(" ".join(str(error).split()))
"""


def case(
    test_url: str = "", *, allowed: tuple[str, ...] = (), dotenv: str = "", **variables: str
) -> dict[str, Any]:
    """An environment, with the application's URL unless that is given otherwise."""
    own = {} if dotenv or "DATABASE_URL" in variables else {"DATABASE_URL": APPLICATION}
    named = {"TEST_DATABASE_URL": test_url} if test_url else {}
    return {
        "variables": {**own, **named, **variables},
        "allowed": list(allowed),
        "dotenv": dotenv,
    }


# Other spellings of the application's own URL.
OWN = [
    case("postgresql+asyncpg://app:hunter2@localhost/shop"),
    case("postgresql+asyncpg://app:hunter2@127.0.0.1:5432/shop"),
    case("postgresql://app:hunter2@[::1]:5432/shop"),
    case("postgres://app:hunter2@127.8.9.10/shop"),
    case("postgresql://tester:other@LOCALHOST:5432/shop?sslmode=disable&application_name=x"),
    case("postgresql://localhost/sho%70"),
    case("postgresql:///shop"),
    case("postgresql:///shop?host=/var/run/postgresql"),
    case("postgresql://%2Fvar%2Frun%2Fpostgresql/shop"),
    case("postgresql:///shop?host=localhost&port=5432"),
    case(f"postgresql:///shop?{CLOUD_SQL}", DATABASE_URL=f"postgresql:///shop?{CLOUD_SQL}"),
    case(
        "postgresql://localhost:6543/shop",
        DATABASE_URL="",
        PGPORT="6543",
        database_url="postgresql:///shop",
    ),
    case("postgresql://localhost/shop", DATABASE_URL="postgresql://a,localhost,b/shop"),
    case("postgresql://localhost/shop", DATABASE_URL="postgresql://u:a/b#c@localhost/shop"),
    case(
        "postgresql://localhost/shop",
        DATABASE_URL="postgresql:///shop?host=a:5432&host=localhost:5432",
    ),
    case(
        "postgresql://db.example/shop",
        allowed=("db.example",),
        DATABASE_URL="postgresql://x@DB.example:5432/shop",
    ),
    case("postgresql://localhost/shop", dotenv=f"DATABASE_URL={APPLICATION}"),
    case("postgresql://localhost/shop", dotenv=f"export Database_Url='{APPLICATION}'"),
    case("postgresql://localhost/shop", database_url=APPLICATION, DATABASE_URL=""),
]

REMOTE = [
    case("postgresql://db.example.org/postgres"),
    case("postgresql://tester:hunter2@192.0.2.7:5432/postgres"),
    case("postgresql://[2001:db8::7]/postgres"),
    case("postgresql://db.example.org/test"),
    case("postgresql://test:test@test.example.org/test_test"),
    case("postgresql:///postgres?host=db.example.org"),
    case("postgresql:///postgres", PGHOST="db.example.org"),
    case("postgresql://localhost.example.org/postgres"),
    case("postgresql://127.0.0.1.example.org/postgres"),
    case("postgresql://0.0.0.0/postgres"),
    case(
        "postgresql://db.example.org/postgres", allowed=("other.example.org", "*", "*.example.org")
    ),
]

ELSEWHERE = [
    case("postgresql://localhost/postgres?hostaddr=192.0.2.7"),
    case("postgresql://localhost/postgres?service=production"),
    case("postgresql://localhost/postgres?dbname=shop"),
    case("postgresql://localhost/postgres?dsn=postgresql%3A//db.example.org"),
]

# Each refused by its name.
UNKNOWN = [
    case("postgresql://localhost/postgres?pgbouncer=true&sslmode=require"),
    case("postgresql://localhost/postgres?pgbouncer"),
    case("postgresql:///postgres?host=/run/postgresql&pgbouncer=true"),
]

NO_MODE = [
    case("postgresql://localhost/postgres?sslmode=no-verify"),
    case("postgresql://localhost/postgres?ssl=no-verify"),
]

SEVERAL = [
    case("postgresql://localhost:5433,db.example.org/postgres"),
    case("postgresql:///postgres?host=localhost,db.example.org"),
    case("postgresql://%2Frun%2Cdb.example.org/postgres"),
    case("postgresql:///postgres?host=localhost&host=db.example.org"),
]

NO_URL = [
    case("localhost"),
    case("postgresql//localhost/postgres"),
    case("mysql://localhost/postgres"),
    case("sqlite:///test.db"),
    case("postgresql://localhost"),
    case("postgresql://localhost/"),
    case("postgresql://u:hun/ter2@localhost/postgres"),
    case("postgresql://u:hunter2@db.example.org,x@localhost/postgres"),
    case("postgresql://localhost/postgres#?host=db.example.org"),
    case("postgresql://localhost/postgres?host=db.example.org"),
    case("postgresql://[::1/postgres"),
    case("host=localhost dbname=postgres"),
]

REDIS_OWN = [
    case(TEST_REDIS_URL="redis://localhost/3", REDIS_URL="redis://localhost:6379/3"),
    case(TEST_REDIS_URL="redis://:hunter2@127.0.0.1:6379/3", REDIS_URL="redis://[::1]/3"),
    case(TEST_REDIS_URL="redis://localhost", REDIS_URL="redis://localhost/1"),
    case(TEST_REDIS_URL="redis://localhost/3", REDIS_URL="redis://localhost?db=3"),
    case(TEST_REDIS_URL="redis://localhost/3", dotenv="redis_url=redis://127.0.0.1/3"),
    case(TEST_REDIS_URL="unix:///run/redis.sock?db=3", REDIS_URL="unix:///run/redis.sock?db=3"),
]

REDIS_REMOTE = [
    case(TEST_REDIS_URL="redis://cache.example.org/3"),
    case(TEST_REDIS_URL="rediss://:hunter2@192.0.2.7:6379/3"),
]

REDIS_NO_URL = [
    case(TEST_REDIS_URL="localhost:6379"),
    case(TEST_REDIS_URL="http://localhost:6379/1"),
    case(TEST_REDIS_URL="redis://localhost/one"),
    case(TEST_REDIS_URL="redis://localhost/3?db=0"),
    case(TEST_REDIS_URL="redis:///3?host=cache.example.org"),
    case(TEST_REDIS_URL="redis://:hun/ter2@localhost/3"),
    case(TEST_REDIS_URL="unix:///run/redis.sock?db=x"),
]

FINE = [
    case("postgresql://localhost/postgres"),
    case("postgresql+asyncpg://tester:a%2Fb%40c@127.0.0.1:5433/postgres?ssl=disable"),
    case("postgresql+psycopg2://localhost:5433/shop"),
    case("postgresql+psycopg://localhost:5433/shop"),
    case("postgresql://localhost:5433/shop"),
    case("postgresql://localhost:5433/shop?sslmode=require&channel_binding=require"),
    case("postgresql://localhost:5433/shop?prepared_statement_cache_size=0&keepalives=1"),
    case("postgresql:///postgres?host=/var/run/postgresql&port=5433"),
    case(f"postgresql://tester:hunter2@/postgres?{CLOUD_SQL}"),
    case("postgresql://%2Fcloudsql%2Fdesk%3Aeurope-west1%3Atests:5433/shop"),
    case("postgresql://db.example.org/postgres", allowed=("DB.example.org",)),
    case("postgresql://[2001:db8::7]/postgres", allowed=("2001:db8::7",)),
    case(TEST_REDIS_URL="redis://localhost:6379/3", REDIS_URL="redis://localhost:6379/0"),
    case(TEST_REDIS_URL="redis://localhost:6380/1", REDIS_URL="redis://localhost:6379/1"),
    case(TEST_REDIS_URL="unix:///run/redis.sock?db=3", REDIS_URL="unix:///run/redis.sock"),
    case(TEST_REDIS_URL="redis://cache.example.org/3", allowed=("cache.example.org",)),
]

VERDICTS = {
    "names the application's own database, the one in DATABASE_URL": OWN,
    "TEST_DATABASE_URL names the host": REMOTE,
    "which may lead to another database": ELSEWHERE,
    "has the parameter pgbouncer, which not every driver": UNKNOWN,
    "=no-verify, which is none of": NO_MODE,
    "names several hosts": SEVERAL,
    "TEST_DATABASE_URL is not the URL of a Postgres database": NO_URL,
    "leads to the application's own Redis database": REDIS_OWN,
    "TEST_REDIS_URL names the host": REDIS_REMOTE,
    "TEST_REDIS_URL is not the URL of a Redis": REDIS_NO_URL,
    "accepted": FINE,
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_spelling(verdict: str, rendered: Render, tmp_path: Path) -> None:
    project = rendered(**ALL_OFF).copy_to(tmp_path / "service")
    cases = VERDICTS[verdict]
    done = subprocess.run(
        [project.python, "-c", JUDGE],
        cwd=project.path,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    lines = done.stdout.splitlines()
    for judged, line in zip(cases, lines, strict=True):
        assert verdict in line, f"{judged}: {line}"
        assert "hunter2" not in line
        assert (
            verdict == "accepted"
            or "unset the variable to use" in line
            or "in pyproject.toml" in line
        )


@pytest.fixture(scope="module")
def server(rendered: Render) -> Iterator[Server]:
    """A server with roles that lack something, each."""
    with (
        postgres.packaged(rendered(**ALL_OFF)) as binaries,
        postgres.running(binaries) as server,
    ):
        server.sql("CREATE ROLE locked LOGIN CREATEDB PASSWORD 'correct horse'")
        server.sql("CREATE ROLE weak LOGIN")
        server.sql("CREATE ROLE heirless LOGIN CREATEDB NOINHERIT")
        server.sql("CREATE ROLE reader LOGIN CREATEDB")
        server.sql("ALTER ROLE reader SET default_transaction_read_only = on")
        server.sql("CREATE ROLE blind LOGIN CREATEDB")
        server.sql("ALTER ROLE blind SET track_counts = off")
        server.sql("CREATE ROLE plain LOGIN CREATEDB")
        server.sql("CREATE ROLE bare LOGIN SUPERUSER")
        server.sql("ALTER ROLE bare SET extension_control_path = '/nowhere'")
        yield server


@contextmanager
def wrong_password(server: Server) -> Iterator[str]:
    yield server.url("locked:hunter2")


@contextmanager
def closed_port(server: Server) -> Iterator[str]:
    with postgres.reserved_port() as port:
        yield f"postgresql://tester:hunter2@127.0.0.1:{port}/postgres"


@contextmanager
def silence(server: Server) -> Iterator[str]:
    with wire.mute() as port:
        yield f"postgresql://tester:hunter2@127.0.0.1:{port}/postgres"


@contextmanager
def percent_in_password(server: Server) -> Iterator[str]:
    yield server.url("tester:%zzhunter2")


@contextmanager
def no_createdb(server: Server) -> Iterator[str]:
    yield server.url("weak")


@contextmanager
def read_only(server: Server) -> Iterator[str]:
    yield server.url("reader")


@contextmanager
def heirless(server: Server) -> Iterator[str]:
    (version,) = server.sql("SHOW server_version_num")
    with wire.rewriting(server.port, version.encode(), b"150019") as port:
        yield f"postgresql://heirless@127.0.0.1:{port}/postgres"


@contextmanager
def no_statistics(server: Server) -> Iterator[str]:
    yield server.url("blind")


@contextmanager
def replica(server: Server) -> Iterator[str]:
    with postgres.standby(server) as standby:
        yield standby.url()


@contextmanager
def pooler(server: Server) -> Iterator[str]:
    with wire.pooling(server.port) as port:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"


@contextmanager
def old_server(server: Server) -> Iterator[str]:
    (version,) = server.sql("SHOW server_version_num")
    with wire.rewriting(server.port, version.encode(), b"140019") as port:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"


# What is provoked, and what must be said: what happened, and what to do.
REFUSALS = {
    wrong_password: [
        'password authentication failed for user "locked"',
        "Correct TEST_DATABASE_URL",
    ],
    closed_port: ["Connection refused", "Correct TEST_DATABASE_URL"],
    silence: ["timeout expired", "Correct TEST_DATABASE_URL"],
    percent_in_password: ["invalid percent-encoded", "Correct TEST_DATABASE_URL"],
    no_createdb: ["the role weak", "ALTER ROLE weak CREATEDB", "or unset the variable"],
    heirless: ["the role heirless", "ALTER ROLE heirless INHERIT", "or unset the variable"],
    read_only: ["default_transaction_read_only", "or unset the variable"],
    no_statistics: ["track_counts = off", "or unset the variable"],
    replica: ["read-only replica", "Name its primary", "or unset the variable"],
    pooler: ["connection pooler", "Name the Postgres behind it", "or unset the variable"],
    old_server: ["is Postgres 14", "needs 15 or newer", "or unset the variable"],
}


@pytest.mark.parametrize("fault", REFUSALS, ids=lambda fault: fault.__name__)
def test_server_is_refused(fault: Any, server: Server, small: Small) -> None:
    before = server.catalogs()
    with fault(server) as url:
        output = small.red(timeout=SECONDS, TEST_DATABASE_URL=url)
        port = url.rpartition(":")[2].partition("/")[0]
    for words in REFUSALS[fault]:
        assert words in output
    assert f"127.0.0.1:{port}" in output
    assert "hunter2" not in output
    assert "Traceback" not in output
    assert "harness/" not in output, "no line of the harness's own code"
    assert "passed" not in output
    assert server.catalogs() == before


def test_pgbouncer_is_refused(server: Server, small: Small) -> None:
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed; a pooler of the tests' own stands in for it above")
    before = server.catalogs()
    with tempfile.TemporaryDirectory() as folder, postgres.reserved_port() as port:
        settings = Path(folder, "pgbouncer.ini")
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=tester\n"
            "[pgbouncer]\nauth_type = any\npool_mode = transaction\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        )
        settings.chmod(0o644)
        Path(folder).chmod(0o755)
        process = subprocess.Popen([program, settings], **postgres.unprivileged())
        try:
            postgres.wait_until_ready(server.binaries, port, process)
            output = small.red(
                timeout=SECONDS, TEST_DATABASE_URL=f"postgresql://tester@127.0.0.1:{port}/postgres"
            )
        finally:
            process.kill()
            process.wait()
    assert f"(127.0.0.1:{port}) is a connection pooler" in output
    assert server.catalogs() == before


@pytest.mark.thorough
def test_cause_is_shown_on_demand_without_passwords(server: Server, small: Small) -> None:
    url = server.url("locked:hunter2")
    for options in (["-vv", "-n", "2"], ["--tb=long", "--showlocals"]):
        output = small.red(*options, timeout=SECONDS, TEST_DATABASE_URL=url)
        assert 'password authentication failed for user "locked"' in output
        assert "OperationalError" in output
        assert "hunter2" not in output


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
def test_url_is_refused_before_collection(workers: list[str], server: Server, small: Small) -> None:
    before = server.catalogs()
    own = server.url("tester:hunter2", "shop")
    for variables in (
        {"TEST_DATABASE_URL": own.replace("127.0.0.1", "localhost"), "DATABASE_URL": own},
        {"TEST_DATABASE_URL": "postgresql://tester:hunter2@db.example.org/postgres"},
    ):
        outcome = small.outcome(*workers, timeout=SECONDS, **variables)
        assert outcome.status == pytest.ExitCode.USAGE_ERROR
        assert "ERROR: TEST_DATABASE_URL names the" in outcome.output
        assert "collect" not in outcome.output
        assert "Traceback" not in outcome.output
        assert "hunter2" not in outcome.output
    assert server.catalogs() == before


def test_there_is_no_way_around(small: Small) -> None:
    hosts = "harness_allowed_hosts=db.example.org"
    for options, more in ((["-o", hosts], {}), ([], {"PYTEST_ADDOPTS": f"-o {hosts}"})):
        output = small.red(
            *options, timeout=SECONDS, TEST_DATABASE_URL="postgresql://db.example.org/test", **more
        )
        assert "names the host db.example.org" in output


def test_command_refuses_as_well(server: Server, small: Small) -> None:
    for name in ("status", "psql", "clean"):
        done = small.tool(
            *("tests.harness", name),
            env={"TEST_DATABASE_URL": "postgresql://db.example.org/test"},
            timeout=SECONDS,
            status=1,
        )
        assert "names the host db.example.org" in done.output
    with pooler(server) as url:
        done = small.tool("tests.harness", "clean", env={"TEST_DATABASE_URL": url}, status=1)
        assert "connection pooler" in done.output


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("bare", ["does not have the extension vector", "Install it there"]),
        ("plain", ["The role plain may not create the extension vector", "Name a role that may"]),
    ],
)
def test_extension_that_can_not_be_had(
    role: str, says: list[str], server: Server, rendered: Render
) -> None:
    before = server.catalogs()
    done = rendered(**LEAN).tool(
        *("pytest", "--no-cov", *ONE_FILE[0]),
        env={"TEST_DATABASE_URL": server.url(role)},
        timeout=SECONDS,
        status=1,
    )
    assert all(words in done.output for words in says), says
    assert "Traceback" not in done.output
    assert server.catalogs() == before


# As hosting providers give them out, and libpq's neighbours of those.
QUERY = (
    "sslmode=disable&channel_binding=disable&connect_timeout=10&application_name=tests%20of%20mine"
    "&options=-c%20work_mem%3D5MB&target_session_attrs=read-write&gssencmode=disable&keepalives=1"
    "&prepared_statement_cache_size=50"
)


def test_parameters_of_hosting_providers(server: Server, small: Small) -> None:
    """They mean the same to the service, to the harness and to psql."""
    test = small.path / "tests" / "test_parameters.py"
    test.write_text(
        "from sqlalchemy import text\n\n\n"
        "async def test_parameters(db_engine):\n"
        "    async with db_engine.connect() as connection:\n"
        "        assert await connection.scalar(text('SHOW work_mem')) == '5MB'\n"
        "        assert await connection.scalar(text('SHOW application_name')) == 'tests of mine'\n"
    )
    url = f"{server.url(scheme='postgres')}?{QUERY}"
    try:
        outcome = small.outcome(TEST_DATABASE_URL=url)
        assert outcome.counts == {"passed": PASSED + 1}, outcome.output
    finally:
        test.unlink()
    psql = [*("tests.harness", "psql", "--", "-Atc"), "SHOW work_mem"]
    assert "5MB" in small.tool(*psql, env={"TEST_DATABASE_URL": url}).output


@pytest.mark.thorough
def test_socket_in_any_folder(server: Server, small: Small) -> None:
    """In the host's place, as psql takes it, or in the query; Cloud SQL's has colons in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place, "desk:europe-west1:tests")
        folder.mkdir()
        for path in (Path(place), folder):
            path.chmod(0o777)
        with postgres.running(server.binaries, f"unix_socket_directories={folder}") as other:
            for url in (
                f"postgresql://tester@/postgres?host={folder}&port={other.port}",
                f"postgresql://tester@{quote(str(folder), safe='')}:{other.port}/postgres",
            ):
                passed(small.outcome("tests/test_small.py", TEST_DATABASE_URL=url))
                small.run(small.python, "-c", SERVICE_CONNECTS, env={"DATABASE_URL": url})


# Runs in a rendered project, without its tests.
SERVICE_CONNECTS = """\
import asyncio
from app.database import engine


async def main():
    await (await engine.connect()).close()
    await engine.dispose()


asyncio.run(main())
"""


# Runs in a rendered project: what becomes of each parameter that libpq itself knows.
PARAMETERS = """\
import asyncio, sys
import asyncpg, psycopg
from sqlalchemy import make_url
from app.database_url import asyncpg_url
from tests.harness.servers import urls

base = sys.argv[1]
values = {
    "host": "127.0.0.1",
    "port": base.rpartition(":")[2].partition("/")[0],
    "options": "-cwork_mem=5MB",
    "connect_timeout": "5",
    "client_encoding": "UTF8",
    "ssl_max_protocol_version": "TLSv1.3",
    "gsslib": "gssapi",
}


async def main():
    for option in psycopg.pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        value = values.get(name) or (option.compiled or b"").decode() or "1"
        query = f"{name}={value}"
        if name.startswith("ssl") and name != "sslmode":
            query += "&sslmode=disable"
        said = urls.complaint(query)
        try:
            url = make_url(asyncpg_url(f"{base}?{query}"))
        except ValueError as error:
            assert str(error) == said and f"the parameter {name}," in said, (name, said)
            print("refused", name)
            continue
        assert not said, said
        assert url.query == make_url(f"{base}?{urls.for_asyncpg(query)}").query
        _, arguments = url.get_dialect()().create_connect_args(url)
        arguments.pop("prepared_statement_cache_size", None)
        await (await asyncpg.connect(**arguments)).close()
        psycopg.connect(f"{base}?{urls.for_libpq(query)}").close()
        print("taken", name)


asyncio.run(main())
"""


def test_each_parameter_of_libpq_is_taken_by_all_or_refused_by_name(
    server: Server, small: Small
) -> None:
    """In `DATABASE_URL` as in `TEST_DATABASE_URL`."""
    url = server.url(scheme="postgresql")
    done = small.run(small.python, "-c", PARAMETERS, url)
    lines = done.output.splitlines()
    assert {f"taken {n}" for n in ("sslmode", "channel_binding", "options")} <= {*lines}
    assert {f"refused {n}" for n in ("hostaddr", "service", "require_auth")} <= {*lines}
    assert len(lines) > 40


@pytest.mark.thorough
def test_encrypted_connections(server: Server, small: Small, tmp_path: Path) -> None:
    """By both drivers, with the certificate that the URL names, and no other."""
    ours, key = wire.certificate(tmp_path, "ours")
    theirs, _ = wire.certificate(tmp_path, "theirs")
    encrypted: list[int] = []
    with wire.encrypting(server.port, ours, key, encrypted) as port:
        url = f"postgresql://tester@localhost:{port}/postgres?sslmode=verify-full&sslrootcert="
        assert "certificate verify failed" in small.red(TEST_DATABASE_URL=f"{url}{theirs}")
        encrypted.clear()
        passed(small.outcome(TEST_DATABASE_URL=f"{url}{ours}"))
        assert len(encrypted) > PASSED


@linux_only  # has a whole network of loopback addresses
def test_settings_of_libpq_do_not_lead_elsewhere(server: Server, small: Small) -> None:
    visits: list[Any] = []
    with wire.listening(visits.append, host="127.0.0.9", port=server.port):
        url = server.url().replace("127.0.0.1", "localhost")
        passed(small.outcome(TEST_DATABASE_URL=url, PGHOSTADDR="127.0.0.9", PGSERVICE="nowhere"))
    assert not visits


# Of what a server or a role has, tests see nothing where it changes what a statement means: the
# limits are the harness's own. Nor does the harness.
NOTHING_ODD = """\
import os

import psycopg

from tests.harness.environment import current
from tests.harness.golden import databases


def test_settings_of_the_harness():
    with databases.connect(current) as connection:
        odd = connection.execute("SELECT name FROM pg_settings WHERE source = 'user'")
        assert odd.fetchall() == []
        assert connection.execute("SHOW exit_on_error").fetchone() == ("off",)


def test_settings():
    url = os.environ["DATABASE_URL"].replace("postgresql+asyncpg", "postgresql")
    with psycopg.connect(url) as connection:
        odd = connection.execute(
            "SELECT name, setting FROM pg_settings "
            "WHERE replace(setting, '\\"public\\"', 'public') <> boot_val "
            "AND (source LIKE '%user' OR category ~ 'Statement Behavior|Compatibility') "
            "AND name NOT LIKE 'tcp_%'"  # of 0, the kernel's own value is shown
        )
        assert sorted(odd.fetchall()) == [
            ("idle_in_transaction_session_timeout", "120000"),
            ("lock_timeout", "10000"),
            ("statement_timeout", "60000"),
        ]
"""


SETS_PATH = """\
import psycopg
with psycopg.connect(os.environ['DATABASE_URL'].replace('+asyncpg', '')) as connection:
    connection.execute(f'ALTER DATABASE {connection.info.dbname} SET search_path = public, ours')
"""

OWN_PATH = (
    SQL
    + """
def test_path():
    [(path,)] = sql("SHOW search_path")
    assert path.replace('"', "") == "public, ours"
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_server_as_others_configured_it(encoding: str, server: Server, small: Small) -> None:
    odd = ("DateStyle=German", "TimeZone=Asia/Kathmandu")
    with postgres.running(server.binaries, *odd, encoding=encoding) as other:
        url = other.url()
        passed(small.outcome(TEST_DATABASE_URL=url))
        other.configure_otherwise("search_path = nowhere")
        passed(small.outcome(TEST_DATABASE_URL=url, LINGER="2"))
        assert small.tried(NOTHING_ODD, TEST_DATABASE_URL=url).counts == {"passed": 2}
        small.edit_seeder()  # but for what it sets itself
        outcome = small.tried(OWN_PATH, SEED=SETS_PATH, TEST_DATABASE_URL=url)
        assert outcome.counts == {"passed": 1}


@pytest.mark.thorough
def test_role_as_others_configured_it(server: Server, small: Small) -> None:
    """With a name that must be quoted, settings of its own, and another role that it takes."""
    role = '"Its@odd-näme"'
    server.sql(f"CREATE ROLE another CREATEDB; CREATE ROLE {role} LOGIN; GRANT another TO {role}")
    odd = server.otherwise("user")
    assert len(odd) > 50
    more = (
        "search_path = nowhere",
        "TimeZone = 'Asia/Kathmandu'",
        "DateStyle = German",
        "role = another",
    )
    for setting in (*odd, *more):
        server.sql(f"ALTER ROLE {role} SET {setting}")
    url = server.url("Its%40odd-n%C3%A4me")
    passed(small.outcome(TEST_DATABASE_URL=url, LINGER="1.5"))
    assert small.tried(NOTHING_ODD, TEST_DATABASE_URL=url).counts == {"passed": 2}


@pytest.mark.thorough
def test_seeder_does_not_see_another_spelling_of_the_variable(server: Server, small: Small) -> None:
    server.sql("CREATE DATABASE shop")
    before = server.sql("SELECT sessions FROM pg_stat_database WHERE datname = 'shop'")
    passed(
        small.outcome(
            TEST_DATABASE_URL=server.url(),
            DATABASE_URL=server.url(database="shop"),
            database_url=server.url(database="shop"),
        )
    )
    assert server.sql("SELECT sessions FROM pg_stat_database WHERE datname = 'shop'") == before
