"""A database that any settings can reach: URLs, their parts, other drivers, tests in other folders.

Each service is written as its developers would, and has three tests: what is stored is seeded by its
own command, and what a test commits is not there for the next.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.project import Project

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
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
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
        'prepare(database_url={"DATABASE_URL": "postgresql"})\n',
        tests="backend/testing",
        absent=("sqlalchemy", "asyncpg", "redis"),
        packaged=False,
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
def made(service: Service, rendered: Render, path: Path) -> Iterator[Project]:
    """A service with the harness."""
    project = rendered(scope="harness", use_redis=False, tests_folder=service.tests).copy_to(path)
    write(service, path)
    yield project
    remove_clusters(path)


@pytest.fixture(params=SERVICES.values(), ids=SERVICES.keys())
def service(request: pytest.FixtureRequest) -> Service:
    found: Service = request.param
    return found


def test_services(service: Service, rendered: Render, tmp_path: Path) -> None:
    with made(service, rendered, tmp_path / "service") as project:
        assert "built in" in project.pytest(env=service.env, passed=PASSED).golden()[1]
        assert project.pytest("-n", "2", env=service.env, passed=PASSED).golden()[1] == "reused"
        said = project.tool(f"{service.package}.harness", "status").output
        home = Path(re.findall(r"\(this project\): .* MB in (\S+)", said)[0])
        note = home / "loopback"
        assert note.exists() == service.loopback
        if service.loopback:
            assert stat.S_IMODE(note.stat().st_mode) == 0o600
