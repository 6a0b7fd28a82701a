"""The shell that starts tests may be set up for other things: none of it reaches them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness.shells import counting, locked_certificate, set_up_for_other_things
from tests.support import postgres
from tests.support.project import Project
from tests.support.small import Small, edited, passed, replace

CONCERNS = ["template/tests/harness/shell.py", "template/tests/harness/environment.py"]


@pytest.mark.slow
def test_such_a_shell_would_have_been_heard(project: Project) -> None:
    """Without what the harness does, the same listener is called: the count above can fail."""
    code = project.path / "tests/harness/shell.py"
    replace(code, "    kept = _kept()  #", "    return\n    kept = _kept()  #")
    with counting() as (port, came):
        shell = set_up_for_other_things(port)
        env = {n: value for n, value in shell.items() if not n.startswith(("PG", "LANGGRAPH_"))}
        test = "tests/workflow/test_full_workflow.py"
        project.tool("pytest", "--no-cov", test, env=env, status=None)
        assert came


# Besides those that belong to a parameter of a connection.
LIBPQ = {"PGSERVICEFILE", "PGSYSCONFDIR", "PGLOCALEDIR", "PGTZ", "PGDATESTYLE", "PGGEQO", "PGDATA"}


def test_no_variable_of_libpq_reaches_an_embedded_server(small: Small) -> None:
    """Whatever connects to it does so without them: psql and the seeder, too."""
    code = "import psycopg.pq; [print(o.envvar) for o in psycopg.pq.Conninfo.get_defaults()]"
    known = re.findall("b'(PG.+)'", small.run(small.python, "-c", code).output)
    assert {"PGHOST", "PGSSLMODE", "PGREQUIREAUTH", "PGCONNECT_TIMEOUT"} <= {*known}
    small.edit_seeder()
    variables: dict[str, Any] = dict.fromkeys({*known, *LIBPQ}, "nonsense")
    passed(small.outcome("tests/test_small.py", **variables))


@pytest.mark.thorough
def test_certificate_of_ones_own_is_not_read(small: Small, tmp_path: Path) -> None:
    """It is for other servers. Where a driver connects by TCP, it looks for one."""
    package = small.path / "tests/__init__.py"
    text = package.read_text()
    with edited(package, text.replace("prepare(", "prepare(database_loopback=True, ", 1)):
        home = locked_certificate(tmp_path)
        passed(small.outcome("tests/test_small.py", HOME=str(home)))
    small.harness("clean")  # it would go on to listen there


@pytest.mark.thorough
def test_variables_of_libpq_work_with_a_server_of_ones_own(small: Small) -> None:
    """The password comes from where the user put it."""
    with postgres.packaged(small) as binaries, postgres.running(binaries) as server:
        server.sql("CREATE ROLE locked LOGIN CREATEDB PASSWORD 'correct horse'")
        url = server.url("locked")
        assert "no password" in small.red("tests/test_small.py", TEST_DATABASE_URL=url)
        passed(
            small.outcome("tests/test_small.py", TEST_DATABASE_URL=url, PGPASSWORD="correct horse")
        )
        refused = small.red(
            "tests/test_small.py",
            TEST_DATABASE_URL=url,
            PGPASSWORD="correct horse",
            PGSSLMODE="require",
        )
        assert "server does not support SSL" in refused


def test_psql_is_not_misled(small: Small) -> None:
    passed(small.outcome("tests/test_small.py"))
    command = [str(small.python), "-m", "tests.harness", "psql", "--", "-Atc", "SELECT 41 + 1"]
    done = small.run(*command, env={**set_up_for_other_things(1), "PSQLRC": "/dev/null"})
    assert "42" in done.output.splitlines()
