"""The embedded servers of a rendered project, reached through the project's own harness."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.project import Project

# Runs in the rendered project. Importing `tests` points it at its servers.
_EXECUTE = """\
import json, sys
import tests
from tests.harness import databases, environment, server

embedded = server.EmbeddedServer(environment.current.home)
embedded.start()
try:
    for database, statement in json.loads(sys.argv[1]):
        with databases.connect(environment.current, database) as connection:
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
finally:
    embedded.stop()
print("rows:", json.dumps(rows))
"""


def execute(project: Project, *statements: tuple[str, str]) -> list[list[Any]]:
    """Run pairs of a database's name and SQL on the project's embedded server.

    Returns the rows of the last statement.
    """
    done = project.run(project.python, "-c", _EXECUTE, json.dumps(statements))
    (rows,) = (line for line in done.output.splitlines() if line.startswith("rows: "))
    found: list[list[Any]] = json.loads(rows.removeprefix("rows: "))
    return found


def databases(project: Project) -> list[str]:
    """Names of the databases that the harness made on the project's server."""
    query = "SELECT datname FROM pg_database WHERE datname ~ '^app_' ORDER BY 1"
    return [name for (name,) in execute(project, ("postgres", query))]


def damage(project: Project, golden: str, statement: str) -> None:
    """Change a golden database behind the harness's back."""
    execute(
        project,
        ("postgres", f"ALTER DATABASE {golden} ALLOW_CONNECTIONS true"),
        (golden, statement),
        ("postgres", f"ALTER DATABASE {golden} ALLOW_CONNECTIONS false"),
    )


def remove_clusters(below: Path) -> None:
    """Remove what the harness keeps for the next run of projects that there will be none of.

    It keeps that in memory where it can: tens of megabytes for each project.
    """
    for base in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        for project in base.glob("pytest-harness-*/*/project"):
            if Path(project.read_text()).is_relative_to(below):
                shutil.rmtree(project.parent)


# Runs in the rendered project until its input ends.
_SERVE = """\
import json, sys
import tests
from tests.harness import databases, environment, server, valkey

current = environment.current
postgres, redis = server.EmbeddedServer(current.home), valkey.EmbeddedRedis(current)
postgres.start()
redis.start()
try:
    with databases.connect(current) as connection:
        connection.execute("CREATE DATABASE service")
    urls = {"DATABASE_URL": current.url("service"), "REDIS_URL": current.redis_url}
    print(json.dumps(urls), flush=True)
    sys.stdin.read()
finally:
    redis.stop()
    postgres.stop()
"""


@contextmanager
def servers(project: Project) -> Iterator[dict[str, str]]:
    """Run the project's embedded servers, with an empty database for the service itself.

    Gives the service's environment variables that name them.
    """
    process = subprocess.Popen(
        [str(project.python), "-c", _SERVE],
        cwd=project.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line, "the servers did not start"
        urls: dict[str, str] = json.loads(line)
        yield urls
    finally:
        process.communicate(timeout=30)
