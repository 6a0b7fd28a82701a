"""`TEST_DATABASE_URL`: a rendered service's tests on a Postgres of the machine's own.

Needs a server's programs, from Debian's packages or named by META_POSTGRES_BIN.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Render
from tests.support import postgres
from tests.support.project import Project
from tests.variants import DEFAULTS, LLM, ONE_FILE, VARIANTS


def server(*, pgvector: bool) -> Iterator[str]:
    """Run an installed Postgres, or skip the test."""
    binaries = postgres.installed(pgvector=pgvector)
    if binaries is None:
        pytest.skip(
            "no Postgres is installed"
            + (" with pgvector (postgresql-…-pgvector)" if pgvector else "")
            + "; META_POSTGRES_BIN names the folder of another's programs"
        )
    with postgres.running(binaries) as url:
        yield url


@pytest.fixture
def url() -> Iterator[str]:
    """The URL of a new server with pgvector."""
    yield from server(pgvector=True)


@pytest.fixture
def plain_url() -> Iterator[str]:
    """The URL of a new server that may lack pgvector."""
    yield from server(pgvector=False)


def test_suite_is_green_and_touches_nothing_foreign(url: str, project: Project) -> None:
    env = {"TEST_DATABASE_URL": url}
    query(project, url, "CREATE DATABASE app_w_precious")
    counts = {"passed": DEFAULTS.passed, "skipped": LLM}
    assert "built" in project.pytest("--no-cov", env=env, **counts).golden()[1]
    assert project.pytest("--no-cov", "-n", "2", env=env, **counts).golden()[1] == "reused"
    databases = query(project, url, "SELECT datname FROM pg_database WHERE datname ~ '^app'")
    assert "app_w_precious" in databases
    assert len(databases) == 2, "but for that one, the golden database alone stays"
    assert query(project, url, "SELECT name FROM pg_settings WHERE source = 'database'") == []


def test_service_without_pgvector_needs_a_server_without_it(
    plain_url: str, rendered: Render
) -> None:
    variant = VARIANTS["no pgvector"]
    service = rendered(**variant.answers)
    service.pytest(
        "--no-cov", env={"TEST_DATABASE_URL": plain_url}, passed=variant.passed, skipped=LLM
    )


def test_missing_pgvector_is_explained(plain_url: str, project: Project) -> None:
    if postgres.installed(pgvector=True) == postgres.installed(pgvector=False):
        pytest.skip("the installed Postgres has pgvector")
    env = {"TEST_DATABASE_URL": plain_url}
    done = project.tool("pytest", *ONE_FILE[0], env=env, timeout=20, status=None)
    assert done.status not in (0, 5)
    assert "vector" in done.output
    assert "Traceback" not in done.output


def query(project: Project, url: str, statement: str) -> list[str]:
    """Run SQL by the project's own psycopg. Returns the first column."""
    code = (
        "import psycopg, sys\n"
        "with psycopg.connect(sys.argv[1], autocommit=True) as connection:\n"
        "    cursor = connection.execute(sys.argv[2])\n"
        "    print(*(row[0] for row in (cursor if cursor.description else [])), sep='\\n')\n"
    )
    plain = url.replace("+asyncpg", "")
    return project.run(project.python, "-c", code, plain, statement).output.split()
