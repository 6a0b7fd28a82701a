"""A database that any settings can reach: URLs, their parts, other drivers, tests anywhere.

Each service is written as its developers would, and has three tests: its own command has seeded
what they see, and what one of them commits the next does not.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import Render
from tests.support import postgres, wire
from tests.support.command import run
from tests.support.copier import copier, unmerged, update
from tests.support.embedded import remove_clusters
from tests.support.project import ANSWERS_FILE, Project, counted, files, install
from tests.support.releases import append, commit
from tests.support.template import FUTURE as PRESENT
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = [
    "*/harness/checks/addresses.py",
    "*/harness/environment.py",
    "*/harness/layout.py",
    "*/harness/servers/loopback.py",
    "*/harness/servers/urls.py",
]

PASSED = 3

PYPROJECT = """\
[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "session"
asyncio_default_test_loop_scope = "session"
addopts = "--strict-markers --strict-config"
pythonpath = ["."]
testpaths = ["{tests}"]
"""

RECIPE = """
pytest_plugins = ["{package}.harness.plugin"]


def pytest_harness_recipe():
    return Recipe(
        metadata=None, commands=[script("fill.py")], sources=["fill.py"], seeded=["notes"]
    )
"""

TESTS = """\
import asyncio

import pytest

import shop


async def test_seeded():
    assert await shop.texts() == ["first"]


@pytest.mark.parametrize("time", [1, 2])
async def test_commits(time):
    assert await shop.texts() == ["first"]
    await shop.add("second")
    assert await shop.texts() == ["first", "second"]
"""

PARTS = """\
from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine


class Database(BaseModel):
    host: str = "localhost"
    port: int = 5432
    user: str = "app"
    password: SecretStr = SecretStr("")
    name: str = "app"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_nested_delimiter="__")
    db: Database = Database()


db = Settings().db
# As some do, and lose what can't be written so.
url = URL.create(
    "postgresql+asyncpg", db.user, db.password.get_secret_value(), db.host, db.port, db.name
).render_as_string(hide_password=False)
engine = create_async_engine(url, poolclass=NullPool)


async def texts():
    async with engine.connect() as connection:
        return [*(await connection.execute(text("SELECT text FROM notes ORDER BY id"))).scalars()]


async def add(words):
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO notes (text) VALUES (:words)"), {"words": words})


async def create():
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (id serial PRIMARY KEY, text text)"))
    await add("first")
"""

# The library of its settings refuses a URL of a socket.
DSN = """\
import os

from pydantic import PostgresDsn, TypeAdapter
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

url = str(TypeAdapter(PostgresDsn).validate_python(os.environ["DATABASE_URL"]))
engine = create_async_engine(url, poolclass=NullPool)
""" + PARTS.partition("poolclass=NullPool)\n")[2]

PSYCOPG = """\
import os

import psycopg


async def texts():
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]) as connection:
        rows = await connection.execute("SELECT text FROM notes ORDER BY id")
        return [text for (text,) in await rows.fetchall()]


async def add(words):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO notes (text) VALUES (%s)", [words])


async def create():
    with psycopg.connect(os.environ["FILL_URL"]) as connection:
        connection.execute("CREATE TABLE notes (id serial PRIMARY KEY, text text)")
    await add("first")
"""

# In production a password file, or the system, lets it in.
NO_PASSWORD = """\
import os

import psycopg

there = {name: os.environ["PG_" + name.upper()] for name in ("host", "port", "user", "dbname")}


async def texts():
    async with await psycopg.AsyncConnection.connect(**there) as connection:
        rows = await connection.execute("SELECT text FROM notes ORDER BY id")
        return [text for (text,) in await rows.fetchall()]


async def add(words):
    with psycopg.connect(**there) as connection:
        connection.execute("INSERT INTO notes (text) VALUES (%s)", [words])


async def create():
    with psycopg.connect(**there) as connection:
        connection.execute("CREATE TABLE notes (id serial PRIMARY KEY, text text)")
    await add("first")
"""

ASYNCPG = """\
import os
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def connected():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    try:
        yield connection
    finally:
        await connection.close()


async def texts():
    async with connected() as connection:
        return [row["text"] for row in await connection.fetch("SELECT text FROM notes ORDER BY id")]


async def add(words):
    async with connected() as connection:
        await connection.execute("INSERT INTO notes (text) VALUES ($1)", words)


async def create():
    async with connected() as connection:
        await connection.execute("CREATE TABLE notes (id serial PRIMARY KEY, text text)")
    await add("first")
"""

FILL = """\
import asyncio

import shop

asyncio.run(shop.create())
"""

ABSENT = """\
import sys

for name in {names!r}:
    sys.modules[name] = None  # as if it were not installed
"""


@dataclass(frozen=True)
class Service:
    """Its code, what its developers write for the harness, and what is not installed there."""

    code: str
    prepare: str
    tests: str = "tests"
    absent: tuple[str, ...] = ()
    loopback: bool = False
    packaged: bool = True
    """Whether its tests are a package, which prepares the environment. Else conftest.py does."""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        return self.tests.replace("/", ".")


PREPARE_PARTS = """\
prepare(
    database_parts=Parts(
        host="DB__HOST", port="DB__PORT", user="DB__USER", password="DB__PASSWORD", name="DB__NAME"
    ),
)
"""

SERVICES = {
    "parts": Service(
        PARTS,
        PREPARE_PARTS,
        loopback=True,
        # In another case, as pydantic-settings takes them, and the developer's own.
        env={"db__host": "127.0.0.1", "DB__NAME": "developers"},
    ),
    "dsn, psycopg with SQLAlchemy": Service(
        DSN,
        'prepare(database_url={"DATABASE_URL": "postgresql+psycopg"}, database_loopback=True)\n',
        tests="src/py/tests",
        absent=("asyncpg",),
        loopback=True,
    ),
    "psycopg": Service(
        PSYCOPG,
        'prepare(database_url={"DATABASE_URL": "postgresql", "FILL_URL": "postgresql"})\n',
        tests="backend/testing",
        absent=("sqlalchemy", "asyncpg", "redis"),
        packaged=False,
    ),
    "parts without a password": Service(
        NO_PASSWORD,
        "prepare(\n    database_url={},\n    database_parts=Parts("
        'host="PG_HOST", port="PG_PORT", user="PG_USER", name="PG_DBNAME"),\n)\n',
        absent=("sqlalchemy", "asyncpg"),
        loopback=True,
    ),
    "asyncpg": Service(
        ASYNCPG, 'prepare(database_url={"DATABASE_URL": "postgresql"})\n', absent=("sqlalchemy",)
    ),
}


def write(service: Service, path: Path) -> None:
    """What the developers of a service have written when it has the harness."""
    tests = path / service.tests
    prepare = (
        f"from {service.package}.harness.environment import Parts, prepare\n\n{service.prepare}"
    )
    absent = ABSENT.format(names=service.absent)
    recipe = f"from {service.package}.harness import Recipe, script\n" + RECIPE.format(
        package=service.package
    )
    (path / "pyproject.toml").write_text(PYPROJECT.format(tests=service.tests))
    (path / "shop.py").write_text(absent + service.code)
    (path / "fill.py").write_text(FILL)
    (tests / "test_shop.py").write_text(TESTS)
    if service.packaged:
        (tests / "__init__.py").write_text(absent + prepare)
        (tests / "conftest.py").write_text(recipe)
    else:
        (tests / "conftest.py").write_text(absent + prepare + recipe)


@contextmanager
def made(
    service: Service, rendered: Render, path: Path, *, use_redis: bool = False
) -> Iterator[Project]:
    """A service with the harness."""
    answers = {"scope": "harness", "use_redis": use_redis, "tests_folder": service.tests}
    project = rendered(**answers).copy_to(path)
    write(service, path)
    yield project
    remove_clusters(path)


@pytest.fixture(params=first(1, SERVICES))
def service(request: pytest.FixtureRequest) -> Service:
    return SERVICES[request.param]


def home_of(project: Project, service: Service) -> Path:
    """The folder of its embedded server."""
    module = service.package if service.packaged else f"{service.package}.conftest"
    code = f"import {module}; from {service.package}.harness import environment as e; "
    done = project.run(project.python, "-c", f"{code} print(e.current.home)")
    return Path(done.output.strip())


def port_of(home: Path) -> int:
    """The port that its server has, or will have."""
    return int((home / "loopback").read_text().split()[0])


def test_services(service: Service, rendered: Render, tmp_path: Path) -> None:
    with made(service, rendered, tmp_path / "service") as project:
        assert "built in" in project.pytest(env=service.env, passed=PASSED).golden()[1]
        assert project.pytest("-n", "2", env=service.env, passed=PASSED).golden()[1] == "reused"
        note = home_of(project, service) / "loopback"
        assert note.exists() == service.loopback
        if service.loopback:
            assert stat.S_IMODE(note.stat().st_mode) == 0o600


LOOK = """\
import os

import psycopg
import pytest

there = f"host=127.0.0.1 port={os.environ['DB__PORT']} user=postgres dbname=postgres"


@pytest.mark.parametrize("password", ["", "postgres", os.environ["DB__USER"]])
def test_without_the_password(password):
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"{there} password='{password}'")
    with psycopg.connect(f"{there} password={os.environ['DB__PASSWORD']}") as connection:
        assert connection.execute("SELECT inet_server_addr()::text").fetchone() == ("127.0.0.1/32",)
        (where,) = connection.execute("SHOW listen_addresses").fetchone()
        assert where == "127.0.0.1"


@pytest.mark.unit
def test_unit():
    assert os.environ["DB__HOST"] == "127.0.0.1"
"""


def test_loopback_asks_for_a_password(rendered: Render, tmp_path: Path) -> None:
    parts = SERVICES["parts"]
    with made(parts, rendered, tmp_path / "service") as project:
        (project.path / "tests/test_shop.py").write_text(LOOK)
        project.pytest("-m", "unit", passed=1)
        assert not (home_of(project, parts) / "data").exists(), "it starts nothing"
        project.pytest(passed=4)
        assert (
            "(this project): embedded server, stopped"
            in project.tool("tests.harness", "status").output
        )


@pytest.mark.slow
def test_port_that_is_taken(rendered: Render, tmp_path: Path) -> None:
    """Before a run, it takes another one; in the midst of it, says so; another run shares it."""
    parts = SERVICES["parts"]
    with made(parts, rendered, tmp_path / "service") as project:
        project.pytest(passed=PASSED)
        home = home_of(project, parts)
        first = port_of(home)
        with socket.create_server(("127.0.0.1", first)) as somebody:
            assert project.pytest(passed=PASSED).golden()[1] == "reused"
            second = port_of(home)
            assert second != first
            with holding(project):
                assert project.pytest(passed=PASSED).golden()[1] == "reused"
            killed = holding(project)
            with killed as holder:
                holder.kill()
                holder.wait()
            assert project.pytest(passed=PASSED).golden()[1] == "reused"
            assert port_of(home) == second, "of the server that the killed run left"
            somebody.setblocking(False)
            with pytest.raises(BlockingIOError):
                somebody.accept()
        late = (project.path / "tests/__init__.py").read_text() + TAKES_IT
        (project.path / "tests/__init__.py").write_text(late)
        said = project.pytest(status=1, env={"TAKE": "1"}, error=1).output
        assert (
            f"Port {second}, which was the tests' server's when this run began, was taken" in said
        )
        assert project.pytest(passed=PASSED).golden()[1] == "reused"


TAKES_IT = """
import os
import socket

if "TAKE" in os.environ:
    somebody = socket.create_server(("127.0.0.1", int(os.environ["DB__PORT"])))
"""

HOLD = """\
import tests
from tests.harness.environment import current
from tests.harness.servers.postgres import EmbeddedServer

server = EmbeddedServer(current.home)
server.start()
print("ready", flush=True)
input()
server.stop()
"""


@contextmanager
def holding(project: Project) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses its server."""
    process = subprocess.Popen(
        [project.python, "-c", HOLD],
        cwd=project.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate("\n", timeout=60)


@pytest.mark.thorough
def test_server_that_listens_elsewhere(rendered: Render, tmp_path: Path) -> None:
    """Loopback was asked for later: it is started again, unless somebody uses it."""
    socket_alone = SERVICES["asyncpg"]
    loopback = replace(
        socket_alone,
        prepare='prepare(database_url={"DATABASE_URL": "postgresql"}, database_loopback=True)\n',
    )
    with made(socket_alone, rendered, tmp_path / "service") as project:
        project.pytest(passed=PASSED)
        with holding(project):
            write(loopback, project.path)
            said = project.pytest(status=1, error=1).output
            assert "listens elsewhere. Wait for that run's end" in said
        assert project.pytest(passed=PASSED).golden()[1] == "reused"
        write(socket_alone, project.path)
        assert project.pytest(passed=PASSED).golden()[1] == "reused"


@pytest.mark.slow
def test_runs_that_begin_at_once(rendered: Render, tmp_path: Path) -> None:
    with made(SERVICES["parts"], rendered, tmp_path / "service") as project:
        command = [str(project.python), "-m", "pytest", "-p", "no:cacheprovider"]
        runs = [
            subprocess.Popen(command, cwd=project.path, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for each in runs:
            output, _ = each.communicate(timeout=120)
            assert counted(output) == {"passed": PASSED}, output


# Each reaches for a server that is not the tests', and swallows what it is told.
REACHES = """\
import asyncio
import contextlib
import os
import socket
import subprocess
import sys

import asyncpg
import psycopg
import pytest
import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.harness.checks import addresses


async def by_asyncpg(host, port):
    await asyncpg.connect(host=host, port=port, user="x", timeout=5)


async def by_psycopg(host, port):
    psycopg.connect(f"host={host} port={port} connect_timeout=5")


async def by_async_psycopg(host, port):
    await psycopg.AsyncConnection.connect(f"host={host} port={port} connect_timeout=5")


async def by_a_socket(host, port):
    await asyncio.open_connection(host, port)


async def in_a_thread(host, port):
    await asyncio.to_thread(psycopg.connect, f"host={host} port={port} connect_timeout=5")


async def by_redis(host, port):
    redis.Redis(host, port, socket_timeout=1, retry=Retry(NoBackoff(), 0)).ping()


async def by_async_redis(host, port):
    once = AsyncRetry(NoBackoff(), 0)
    async with redis.asyncio.Redis(host=host, port=port, socket_timeout=1, retry=once) as client:
        await client.ping()


async def by_redis_socket(path):
    redis.Redis(unix_socket_path=path, socket_timeout=1, retry=Retry(NoBackoff(), 0)).ping()


async def by_async_redis_socket(path):
    once = AsyncRetry(NoBackoff(), 0)
    async with redis.asyncio.Redis(unix_socket_path=path, socket_timeout=1, retry=once) as client:
        await client.ping()


SOCKETS = [by_redis_socket, by_async_redis_socket]
WAYS = [by_asyncpg, by_psycopg, by_async_psycopg, by_a_socket, in_a_thread]
DRIVERS = [by_asyncpg, by_psycopg, by_async_psycopg, in_a_thread, by_redis, by_async_redis]
OWN = int(os.environ["OWN"])


@pytest.mark.parametrize("where", [("127.0.0.1", 5432), ("localhost", OWN), ("127.0.0.1", OWN)])
@pytest.mark.parametrize("way", WAYS)
async def test_tcp(way, where):
    with contextlib.suppress(Exception):
        await way(*where)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("way", DRIVERS)
async def test_port_that_nobody_named(way, host):
    with contextlib.suppress(Exception):
        await way(host, int(os.environ["UNNAMED"]))


@pytest.mark.parametrize("way", DRIVERS)
async def test_port_that_is_closed(way):
    with pytest.raises((OSError, psycopg.OperationalError, redis.ConnectionError)):
        await way("127.0.0.1", 1)


@pytest.mark.parametrize("way", [by_asyncpg, by_async_psycopg, by_async_redis])
async def test_server_that_a_test_made(way):
    heard = []

    async def hear(reader, writer):
        heard.append(await reader.read(1))
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0) as server:
        with pytest.raises((OSError, psycopg.OperationalError, redis.ConnectionError)):
            await way(*server.sockets[0].getsockname())
    assert heard[0]


@pytest.mark.parametrize("way", SOCKETS)
async def test_redis_behind_a_socket(way):
    with contextlib.suppress(redis.RedisError):
        await way(os.environ["FOLDER"] + "/Redis")


@pytest.mark.parametrize("way", SOCKETS)
async def test_socket_of_nobody(way):
    with pytest.raises(redis.ConnectionError):
        await way(os.environ["FOLDER"] + "/none")


def test_the_tests_own_redis():
    assert redis.Redis.from_url(os.environ["REDIS_URL"]).ping()
    ping = "import os, redis; assert redis.Redis.from_url(os.environ['REDIS_URL']).ping()"
    subprocess.run([sys.executable, "-c", ping], check=True)


async def test_socket_that_a_test_made(tmp_path):
    heard = []

    async def hear(reader, writer):
        heard.append(await reader.read(1))
        writer.close()

    async with await asyncio.start_unix_server(hear, tmp_path / "Redis"):
        with pytest.raises(redis.ConnectionError):
            await by_async_redis_socket(str(tmp_path / "Redis"))
    assert heard[0]


def test_sockets_stay_as_they_are():
    mine, other = socket.socketpair()
    socket.setdefaulttimeout(5)
    try:
        with mine, other:
            with pytest.raises(redis.ConnectionError):
                redis.Redis("127.0.0.1", 1, retry=Retry(NoBackoff(), 0)).ping()
            assert os.get_blocking(mine.fileno())
    finally:
        socket.setdefaulttimeout(None)


def test_library_that_connects_otherwise():
    with pytest.raises(RuntimeError, match="module 'redis' .* has no _connect: "):
        addresses.put_before(redis, "_connect", print)


def test_port_that_a_list_leaves_out():
    asked = []
    parameters = {"host": "localhost,127.0.0.1", "port": ",5433"}
    addresses.ask_of_libpq(parameters, lambda *where: asked.append(where), asked.append)
    assert asked == [("localhost", 5432), ("127.0.0.1", 5433)]


@pytest.mark.parametrize("folder", ["/tmp", "/var/run/postgresql", os.environ["FOLDER"]])
@pytest.mark.parametrize("way", WAYS[:3])
async def test_unix(way, folder):
    with contextlib.suppress(Exception):
        await way(folder, 5432)


def test_nothing_said():
    with contextlib.suppress(Exception):
        psycopg.connect("")
"""
REFUSED = 5 * 3 + 6 * 2 + 3 * 3 + 2 + 1
REACHED = 6 + 3 + 2 + 4 + 1


def test_other_servers_are_refused(rendered: Render, tmp_path: Path) -> None:
    with (
        beside_others(rendered, tmp_path / "service") as (project, tcp, folder, others),
        listening() as (unnamed, _),
    ):
        env = {
            "OWN": str(tcp.getsockname()[1]),
            "UNNAMED": str(unnamed.getsockname()[1]),
            "FOLDER": str(folder),
            "DATABASE_URL": f"postgresql://app@localhost:{tcp.getsockname()[1]}/app",
        }
        (project.path / "tests/test_shop.py").write_text(REACHES)
        said = project.pytest(env=env, status=1, failed=REFUSED, passed=REACHED).output
        theirs = "is not the tests'. They have theirs from DATABASE_URL, REDIS_URL:"
        assert said.count(theirs) >= REFUSED
        assert re.search(
            r"test_shop\.py:\d+ asked for a connection to 127\.0\.0\.1:5432, and", said
        )
        assert f'harness_allowed_connections = ["{folder}/Redis"]' in said
        allowed = f'harness_allowed_connections = ["127.0.0.1:{env["OWN"]}", "{folder}"]\n'
        append(project.path / "pyproject.toml", allowed)
        project.pytest("-k", "by_a_socket and (where1 or where2)", env=env, passed=2)
        assert not "".join([*told(unnamed), *told(others)])
        project.pytest("-k", "redis_behind", env=env, passed=2)
        assert "".join(told(others)), "those in a folder that is allowed"
        write(SERVICES["asyncpg"], project.path)
        (project.path / "tests/test_shop.py").write_text(REACHES)
        project.pytest("-k", "nobody_named and redis and 127", env=env, passed=2)
        assert "".join(told(unnamed)), "tests that have no Redis reach the developer's"


# Those that a new service has not.
OTHER_DRIVERS = """\
import contextlib
import os

import psycopg2
import pytest
import valkey
from valkey.asyncio.retry import Retry as AsyncRetry
from valkey.backoff import NoBackoff
from valkey.retry import Retry

PORT, FOLDER = int(os.environ["UNNAMED"]), os.environ["FOLDER"]
PLACES = [{"host": "127.0.0.1", "port": PORT}, {"unix_socket_path": f"{FOLDER}/Redis"}]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_psycopg2(host):
    with contextlib.suppress(Exception):
        psycopg2.connect(f"host={host} port={PORT} connect_timeout=5")


def test_psycopg2_behind_a_socket():
    with contextlib.suppress(Exception):
        psycopg2.connect(host=FOLDER, connect_timeout=5)


@pytest.mark.parametrize("where", PLACES, ids=["port", "socket"])
def test_valkey(where):
    with contextlib.suppress(valkey.ValkeyError):
        valkey.Valkey(**where, socket_timeout=1, retry=Retry(NoBackoff(), 0)).ping()


@pytest.mark.parametrize("where", PLACES, ids=["port", "socket"])
async def test_async_valkey(where):
    once = AsyncRetry(NoBackoff(), 0)
    with contextlib.suppress(valkey.ValkeyError):
        async with valkey.asyncio.Valkey(**where, socket_timeout=1, retry=once) as client:
            await client.ping()


def test_nobody_listens():
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect("host=127.0.0.1 port=1 connect_timeout=5")
    with pytest.raises(valkey.ConnectionError):
        valkey.Valkey("127.0.0.1", 1, retry=Retry(NoBackoff(), 0)).ping()


def test_own_servers():
    assert valkey.Valkey.from_url(os.environ["REDIS_URL"]).ping()
    with psycopg2.connect(os.environ["DATABASE_URL"]) as connection:
        connection.cursor().execute("SELECT 1")
    connection.close()
"""


@pytest.mark.slow
def test_other_drivers_are_refused_other_servers(rendered: Render, tmp_path: Path) -> None:
    with beside_others(rendered, tmp_path / "service") as (project, unnamed, folder, others):
        (project.path / "tests/test_shop.py").write_text(OTHER_DRIVERS)
        complete = rendered(**{**ALL_OFF, "use_redis": True})
        own = replace(project, python=install(complete, tmp_path / "environment").python)
        pip = (os.environ["UV"], "pip", "install", "--quiet", "--python", own.python)
        run(*pip, "psycopg2-binary", "valkey", cwd=tmp_path, timeout=600)
        env = {"UNNAMED": str(unnamed.getsockname()[1]), "FOLDER": str(folder)}
        said = own.pytest(env=env, status=1, failed=7, passed=2).output
        assert said.count("is not the tests'. They have theirs from") >= 7
        assert not "".join([*told(unnamed), *told(others)])
        with TemporaryDirectory() as allowed, bound(Path(allowed, ".s.PGSQL.5432")) as postgres_:
            setting = f'harness_allowed_connections = ["{allowed}"]\n'
            append(project.path / "pyproject.toml", setting)
            own.pytest("-k", "psycopg2_behind", env={**env, "FOLDER": allowed}, passed=1)
            assert "".join(told(postgres_))


# As a line in /etc/hosts has it.
NAME = """\
import socket

real = socket.getaddrinfo


def getaddrinfo(host, *args, **kwargs):
    return real({address!r} if host == {name!r} else host, *args, **kwargs)


socket.getaddrinfo = getaddrinfo
"""

NAMED = """

@pytest.mark.parametrize("way", [by_asyncpg, by_psycopg, by_async_psycopg, by_a_socket])
async def test_name(way):
    with contextlib.suppress(OSError, asyncpg.PostgresError, psycopg.Error):
        await way(os.environ["NAME"], int(os.environ["UNNAMED"]))
"""


def test_names_that_lead_to_this_machine(rendered: Render, tmp_path: Path) -> None:
    came: list[bytes] = []
    own = wire.own_address()
    with (
        made(SERVICES["asyncpg"], rendered, tmp_path / "service") as project,
        wire.listening(lambda client: came.append(client.recv(1))) as port,
        wire.listening(lambda client: came.append(client.recv(1)), own) as strangers,
    ):
        head, *_ = REACHES.partition("WAYS =")
        (project.path / "tests/test_shop.py").write_text(head + NAMED)
        prepare = (project.path / "tests/__init__.py").read_text()

        def let(name: str, address: str) -> None:
            known = NAME.format(name=name, address=address)
            (project.path / "tests/__init__.py").write_text(known + prepare)

        let(socket.gethostname(), own)  # psycopg looks it up, and connects to that
        env = {"NAME": socket.gethostname(), "UNNAMED": str(strangers)}
        project.pytest("-k", "psycopg", env=env, status=1, failed=2)
        assert not any(came)

        let("db.example", "127.0.0.1")
        allowed = f'harness_allowed_connections = ["db.example:{port}"]\n'
        append(project.path / "pyproject.toml", allowed)
        application = f"postgresql://app@localhost:{port}/app"
        env = {"NAME": "db.example", "UNNAMED": str(port), "DATABASE_URL": application}
        project.pytest(env=env, passed=4)
        assert len([*filter(None, came)]) >= 3


def told(server: socket.socket) -> Iterator[str]:
    """What was sent to a server by each who came."""
    server.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(5)
                yield connection.recv(1000).decode()


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    """A server behind a socket."""
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        yield unix


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Path]]:
    """Servers that nobody may reach: on a port, and in a folder. Fails if somebody has."""
    with (
        TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        bound(Path(folder, ".s.PGSQL.5432")) as unix,
    ):
        yield tcp, Path(folder)
        unix.setblocking(False)
        with pytest.raises(BlockingIOError):
            unix.accept()


@contextmanager
def beside_others(
    rendered: Render, path: Path
) -> Iterator[tuple[Project, socket.socket, Path, socket.socket]]:
    """A service whose tests have a Redis; servers of others, on a port and behind a socket."""
    prepare = 'prepare(database_url={"DATABASE_URL": "postgresql"}, redis_url="REDIS_URL")\n'
    service = replace(SERVICES["asyncpg"], prepare=prepare)
    with (
        made(service, rendered, path, use_redis=True) as project,
        listening() as (tcp, folder),
        bound(folder / "Redis") as others,
    ):
        yield project, tcp, folder, others


ELSEWHERE = {
    "psycopg": 'import psycopg; psycopg.connect("host=localhost port={port} connect_timeout=5")',
    "psycopg, nothing said": 'import psycopg; psycopg.connect("dbname=app")',
    "asyncpg": "import asyncio, asyncpg; "
    'asyncio.run(asyncpg.connect(host="127.0.0.1", port={port}, user="x", timeout=5))',
    "redis": "import redis; redis.Redis('127.0.0.1', {port}).ping()",
    "redis behind a socket": "import redis; redis.Redis(unix_socket_path='{folder}/Redis').ping()",
    "the usual port": "import socket; socket.create_connection(('127.0.0.1', 5432))",
}


@pytest.mark.thorough
def test_seeder_that_goes_elsewhere(rendered: Render, tmp_path: Path) -> None:
    """It read other variables: the developer's own database would be filled."""
    with beside_others(rendered, tmp_path / "service") as (project, tcp, folder, others):
        port = tcp.getsockname()[1]
        named = {"DATABASE_URL": f"postgresql://app@127.0.0.1:{port}/app"}
        tried = [(name, named) for name in ELSEWHERE]
        tried += [(name, {}) for name in ("psycopg", "asyncpg")]  # which know what it is
        for name, env in tried:
            code = ELSEWHERE[name]
            (project.path / "fill.py").write_text(code.format(port=port, folder=folder) + "\n")
            said = project.pytest("-x", env=env, status=1, error=1).output
            assert "The golden database was not built: a command ended with status 1" in said
            assert re.search("the server at .* is not the tests'", said)
        assert not "".join([*told(tcp), *told(others)])


@pytest.mark.thorough
def test_settings_made_too_early(rendered: Render, tmp_path: Path) -> None:
    parts = SERVICES["parts"]
    early = replace(parts, prepare=f"import shop\n\n{parts.prepare}")
    with made(early, rendered, tmp_path / "service") as project:
        said = project.pytest(status=1, failed=PASSED).output
        assert "asked for a connection to localhost:5432, and was refused" in said
        assert "made its settings before prepare() was called" in said


@pytest.mark.thorough
def test_parts_of_a_server_that_is_given(rendered: Render, tmp_path: Path) -> None:
    parts = SERVICES["parts"]
    with (
        made(parts, rendered, tmp_path / "service") as project,
        postgres.packaged(project) as binaries,
        postgres.running(postgres.installed(pgvector=False) or binaries) as server,
    ):
        server.sql("CREATE ROLE runner LOGIN CREATEDB")
        url = server.url("runner")
        project.pytest(env={"TEST_DATABASE_URL": url}, passed=PASSED)
        own = {"DB__HOST": "localhost", "DB__PORT": str(server.port), "DB__NAME": "postgres"}
        env = {**own, "TEST_DATABASE_URL": url}
        said = project.tool("pytest", env=env, status=pytest.ExitCode.USAGE_ERROR).output
        assert "names the application's own database, the one in DB__HOST and DB__NAME" in said
        own["DB__NAME"] = "another"
        project.pytest(env={**own, "TEST_DATABASE_URL": url}, passed=PASSED)


@pytest.mark.slow
def test_update_finds_it_again(versions: Path, tmp_path: Path, python: Path) -> None:
    service = SERVICES["psycopg"]
    path = tmp_path / "service"
    (path / service.tests).mkdir(parents=True)
    write(service, path)
    (path / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n")
    run("git", "init", "--quiet", cwd=path)
    commit(path, "A service")
    before = files(path)
    answers = [
        "-d",
        "scope=harness",
        "-d",
        "use_redis=false",
        "-d",
        f"tests_folder={service.tests}",
    ]
    copier("copy", "--defaults", *answers, "-r", PRESENT, versions, path, cwd=tmp_path)
    project = Project.read(path, python)
    harness = f"{service.tests}/harness/"
    after = files(path)
    assert {name: after[name] for name in before} == before
    added = {name for name in after if not name.startswith(harness)} - before.keys()
    assert added == {ANSWERS_FILE, "docs/testing.md", "docs/adopting-the-harness.md"}
    commit(path, "Adopt the harness")
    project.pytest(passed=PASSED)
    update(project)
    assert not unmerged(project)
    now = files(path)
    touched = {name for name in now.keys() | after if now.get(name) != after.get(name)}
    others = {name for name in touched if not name.startswith(harness)}
    assert others == {ANSWERS_FILE, "docs/testing.md", "docs/adopting-the-harness.md"}
    assert b"of the future" in now[f"{harness}golden/build.py"]
    assert "the harness changed" in project.pytest(passed=PASSED).golden()[1]
    remove_clusters(tmp_path)


@pytest.mark.parametrize(
    "folder", ["/tests", "../tests", "tests/", "my-tests", "tests/class", "True", ""]
)
def test_folder_that_is_no_package(folder: str, template: Path, tmp_path: Path) -> None:
    data = ("-d", "scope=harness", "-d", f"tests_folder={folder}", "-r", PRESENT)
    to = tmp_path / "service"
    assert (
        "'tests_folder'"
        in copier("copy", "--defaults", *data, template, to, cwd=tmp_path, status=1).output
    )
    assert not (to / "docs").exists()
