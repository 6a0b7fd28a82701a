"""`TEST_DATABASE_URL`: a rendered service's tests on a Postgres of the user's own.

That is an installed one, from Debian's packages or named by META_POSTGRES_BIN, where there is one;
or else the programs of the embedded one, run as a server of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import Render
from tests.support import postgres
from tests.support.postgres import Server
from tests.support.project import Project
from tests.variants import VARIANTS


@contextmanager
def running(project: Project, *, pgvector: bool) -> Iterator[Server]:
    """A new server, and a role on it that may do what it needs and no more."""
    installed = postgres.installed(pgvector=pgvector)
    with postgres.packaged(project) as binaries, postgres.running(installed or binaries) as server:
        # pgvector takes a superuser; nothing else does.
        server.sql(f"CREATE ROLE runner LOGIN CREATEDB {'SUPERUSER' if pgvector else ''}")
        yield server


def test_suite_is_green_and_touches_nothing_foreign(rendered: Render) -> None:
    variant = VARIANTS["no assistant"]
    project = rendered(**variant.answers)
    with running(project, pgvector=True) as server:
        before = server.catalogs()
        env = {"TEST_DATABASE_URL": server.url("runner", scheme="postgres")}
        only = ("--no-cov", "-m", "integration")
        golden, story = project.pytest(*only, env=env, passed=variant.integration).golden()
        assert "built" in story
        env = {"TEST_DATABASE_URL": server.url("runner")}
        parallel = project.pytest("--no-cov", "-n", "2", env=env, passed=variant.passed)
        assert parallel.golden() == (golden, "reused")
        names = server.sql("SELECT datname FROM pg_database WHERE datname ~ '^app'")
        assert names == [golden], "it alone stays"
        project.tool("tests.harness", "clean", env=env)
        assert server.catalogs() == before


def test_service_without_pgvector_needs_a_server_without_it(rendered: Render) -> None:
    variant = VARIANTS["all off"]
    service = rendered(**variant.answers)
    with running(service, pgvector=False) as server:
        env = {"TEST_DATABASE_URL": server.url("runner")}
        service.pytest("--no-cov", "-n", "2", env=env, passed=variant.passed)
