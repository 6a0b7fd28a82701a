"""`python -m tests.harness`: what it shows, opens and removes."""

from __future__ import annotations

import re

import pytest

from tests.support.project import Project

CONCERNS = [
    "*/harness/__main__.py",
    "*/harness/commands.py",
    "*/harness/layout.py",
    "*/harness/servers/psql.py",
]

FAILS = """\
import pytest
from sqlalchemy import text


@pytest.mark.own_database
async def test_fails(db_session):
    await db_session.execute(text("CREATE TABLE evidence AS SELECT 42 AS answer"))
    await db_session.commit()
    raise AssertionError
"""

# Asks while a fixture wider than the test holds a database of its own.
ASKS = """\
import os
import subprocess
import sys

import psycopg
import pytest


@pytest.fixture(scope="module")
def table(enterprise_database_setup):
    url = os.environ["DATABASE_URL"].replace("+asyncpg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE wide (i int)")


@pytest.mark.own_database
def test_asks(table):
    shell = {**os.environ, "PYTHONPATH": ""}  # beside the run: it may look at all servers
    command = [sys.executable, "-m", "tests.harness", "status"]
    done = subprocess.run(command, env=shell, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
"""


# A folder goes as soon as `status` looks into it, as that of a database does that a run drops.
VANISHES = """\
import os, runpy, sys
import tests
from tests.harness.environment import current

folder = current.home / "data" / "vanishes"
folder.mkdir()


def vanish(event, arguments):
    if event == "os.scandir" and os.fspath(arguments[0]) == str(folder):
        folder.rmdir()


sys.addaudithook(vanish)
sys.argv[1:] = ["status"]
try:
    runpy.run_module("tests.harness", run_name="__main__")
finally:
    assert not folder.exists()
"""


def harness(project: Project, *words: str, status: int = 0) -> str:
    """What the command prints."""
    return project.tool("tests.harness", *words, status=status).output


def test_from_nothing_to_nothing(lean: Project) -> None:
    assert "no embedded server yet" in harness(lean, "status")
    assert "run the tests first" in harness(lean, "psql", status=1)

    (lean.path / "tests" / "test_fails.py").write_text(FAILS)
    lean.pytest("--no-cov", "tests/test_fails.py", status=1, failed=1)
    stopped = f"{lean.path} (this project): embedded server, stopped"
    assert stopped in harness(lean, "status")
    assert stopped in lean.run(lean.python, "-c", VANISHES).output
    # The database of the failed test comes first; a clone is made where there is none.
    assert "42" in harness(lean, "psql", "--", "-Atc", "SELECT answer FROM evidence")
    assert "psql: error" in harness(lean, "psql", "nowhere", "--", "-c", "SELECT 1", status=2)

    assert "removed" in harness(lean, "clean")
    assert "no embedded server yet" in harness(lean, "status")
    assert "nothing to clean" in harness(lean, "clean")


@pytest.mark.thorough
def test_status_beside_a_run(lean: Project) -> None:
    (lean.path / "tests" / "test_asks.py").write_text(ASKS)
    said = lean.pytest("--no-cov", "-rP", "tests/test_asks.py", passed=1).output
    for name, kind in (
        (r"app_g_\w+", "golden, built .* for .*"),
        (r"app_w_\w+_main", "a worker's"),
        (r"app_t_\w+_main_\d+", "what a wider fixture stored"),
    ):
        assert re.search(rf"^  {name} +{kind}$", said, re.MULTILINE), said


@pytest.mark.thorough
def test_psql_opens_a_clone_and_drops_it(lean: Project) -> None:
    (lean.path / "tests" / "test_fails.py").write_text("async def test(db_session): ...\n")
    lean.pytest("--no-cov", "tests/test_fails.py", passed=1)
    names = "SELECT datname FROM pg_database WHERE datname ~ '^app_[^g]'"
    (clone,) = harness(lean, "psql", "--", "-Atc", names).split()
    assert "psql" in clone
    assert clone not in harness(lean, "psql", "--", "-Atc", names)
    assert "DELETE" in harness(lean, "psql", "--", "-c", "DELETE FROM customers")
    assert harness(lean, "psql", "--", "-Atc", "SELECT count(*) FROM customers").strip() == "5"


def test_each_command_explains_itself(lean: Project) -> None:
    listed = harness(lean, "--help")
    for command in ("doctor", "status", "psql", "clean"):
        assert command in listed
        assert f"python -m tests.harness {command}" in harness(lean, command, "--help")
    assert "invalid choice" in harness(lean, "nonsense", status=2)
