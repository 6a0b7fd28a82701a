"""The embedded servers of a rendered project, reached through the project's own harness."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.support.project import Project

# Runs in the rendered project. Importing `tests` points it at its servers.
_EXECUTE = """\
import json, sys
import tests
from tests.harness import environment
from tests.harness.golden import databases
from tests.harness.servers import postgres as server

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
            if Path(os.fsdecode(project.read_bytes())).is_relative_to(below):
                shutil.rmtree(project.parent)


# Runs in the rendered project until its input ends; does what each line of it says. Where nobody
# else uses the cluster, `stop()` is an orderly stop, and cleans up after one that was not.
_SERVE = """\
import json, os, signal, sys, time
from pathlib import Path
import psycopg
import tests
from tests.harness import environment
from tests.harness.golden import databases
from tests.harness.servers import postgres as server, valkey

current = environment.current
postgres, redis = server.EmbeddedServer(current.home), valkey.EmbeddedRedis(current)
kept = None


def sql(statement):
    global kept
    deadline = time.monotonic() + 30
    while True:
        try:
            if kept is None:
                kept = databases.connect(current, "service")
            cursor = kept.execute(statement)
            return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:  # the server was stopped, or recovers
            if time.monotonic() > deadline:
                raise
            close()
            time.sleep(0.05)


def close():
    global kept
    if kept is not None:
        kept.close()
        kept = None


def processes(name):
    if name == "redis":
        return [redis._process.pid]
    pid = int((postgres.data / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def stop(name, how):
    if name == "postgres":
        close()
    first, *children = processes(name)
    if name == "redis" or how == "SIGKILL":
        os.kill(first, signal.Signals[how])
    while how == "SIGKILL" and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.01)  # each of them notices
    if name == "redis":
        redis._process.wait()
    {"postgres": postgres, "redis": redis}[name].stop()


def start(name):
    {"postgres": postgres, "redis": redis}[name].start()


def freeze(name):
    for process in processes(name):
        os.kill(process, signal.SIGSTOP)


def thaw(name):
    for process in processes(name):
        os.kill(process, signal.SIGCONT)


COMMANDS = {f.__name__: f for f in (sql, stop, start, freeze, thaw)}
postgres.start()
redis.start()
try:
    with databases.connect(current) as connection:
        connection.execute("CREATE DATABASE service")
        # What is acknowledged outlives the server's process, as in production.
        connection.execute("ALTER DATABASE service SET synchronous_commit = on")
    urls = {"DATABASE_URL": current.url("service"), "REDIS_URL": current.redis_url}
    print(json.dumps(urls), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer = COMMANDS[name](*arguments)
        print(json.dumps(answer, default=str), flush=True)
finally:
    close()
    redis.stop()
    postgres.stop()
"""

Name = Literal["postgres", "redis"]


class Servers:
    """The embedded servers of a project, with a database for the service itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.urls: dict[str, str] = self._answer()
        """The service's environment variables that name the servers."""

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the servers are gone"
        return json.loads(line)

    def _ask(self, *words: str) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def sql(self, statement: str) -> list[list[Any]]:
        """Run SQL in the service's database. Returns the rows.

        Always on the same session, unless that is lost: then again, on another.
        """
        rows: list[list[Any]] = self._ask("sql", statement)
        return rows

    def stop(self, name: Name, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop one of them, by `SIGTERM` in its orderly way, by `SIGKILL` as a crash does."""
        self._ask("stop", name, how.name)

    def start(self, name: Name) -> None:
        """Start it again; Postgres has the data that it had."""
        self._ask("start", name)

    @contextmanager
    def frozen(self, name: Name) -> Iterator[None]:
        """Keep it from doing anything, while its connections stay: as a network that is cut does.

        No `sql` meanwhile, if it is Postgres.
        """
        self._ask("freeze", name)
        try:
            yield
        finally:
            self._ask("thaw", name)


@contextmanager
def servers(project: Project) -> Iterator[Servers]:
    """Run the project's embedded servers, with an empty database for the service itself."""
    process = subprocess.Popen(
        [str(project.python), "-c", _SERVE],
        cwd=project.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Servers(process)
    finally:
        process.communicate(timeout=60)
