"""A rendered service with all features off and five quick tests: something to break."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.command import begin, overlaid
from tests.support.embedded import remove_clusters
from tests.support.machine import MARK, kill, new_mark, started_with
from tests.support.project import Outcome, Project, counted

PASSED = 5

SQL = """\
import os

import psycopg

URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")


def sql(statement):
    with psycopg.connect(URL) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


"""
"""Begins a file of tests that reach the database beside the service: `sql()`, by another driver."""

TESTS = '''\
"""One test of each kind, and what each needs: a seeded database."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from app.database import AsyncSessionLocal
from app.models import Customer


async def customers():
    async with AsyncSessionLocal() as session:
        return await session.scalar(select(func.count()).select_from(Customer))


@pytest.mark.parametrize("number", range(2))
async def test_rolled_back(number, db_session):
    assert await customers() == 5
    await db_session.execute(text("DELETE FROM customers"))
    await db_session.commit()
    assert await customers() == 0


@pytest.mark.own_database
async def test_database_of_its_own(db_session):
    assert await customers() == 5
    await db_session.execute(text("DELETE FROM customers"))
    await db_session.commit()


async def test_own_connections(db_engine):
    assert await customers() == 5
    async with db_engine.begin() as connection:
        await connection.execute(text("DELETE FROM customers"))


async def test_linger(db_session):
    assert await customers() == 5
    time.sleep(float(os.environ.get("LINGER", "0")))
    if hold := os.environ.get("HOLD"):
        held = Path(hold)
        held.touch()
        while held.exists():
            await asyncio.sleep(0.01)
    assert await customers() == 5
'''

# Before the seeder's own code: what it is told to do, and a note that it was started.
SEEDER = """\
if __name__ == "__main__":
    import os
    import time

    with open("seedings", "a") as log:
        log.write("x")
    print("seeding, as told by", os.environ.get("SEED"), flush=True)
    exec(os.environ.get("SEED", ""))

"""

# Runs in the project, and executes what it is told, a line of JSON each. Importing `tests` points
# it at its servers.
_CONSOLE = """\
import json, os, sys
import psycopg
import tests
from tests.harness import environment
from tests.harness.golden import databases
from tests.harness.golden.digest import digest
from tests.harness.servers import postgres as server

current = environment.current
kept = {}


def sql(database, statement):
    if database not in kept:
        conninfo = current.conninfo(database)
        kept[database] = psycopg.connect(conninfo, autocommit=True, application_name="a foreigner")
    cursor = kept[database].execute(statement)
    return cursor.fetchall() if cursor.description else []


def close():
    for connection in kept.values():
        connection.close()
    kept.clear()


def look():
    with databases.connect(current) as connection:
        databases.hold_run(connection, current.run)
        names = [n for (n,) in connection.execute("SELECT datname FROM pg_database ORDER BY 1")]
        held = {}
        for golden in [d for d in databases.ours(connection) if d.kind == "g" and d.sealed]:
            databases.create(connection, current.database, golden.name)
            with databases.connect(current, current.database) as inside:
                found = digest(inside)
                rows = inside.execute(
                    "SELECT id, full_name, email, phone FROM customers ORDER BY id").fetchall()
                counts = {name: count for name, (count, *_) in found["tables"].items()}
                held[golden.name] = [found["schema"], counts, rows]
            mine = [d for d in databases.ours(connection) if d.name == current.database]
            databases.drop(connection, mine)
    files = sorted(os.listdir(current.home)) if current.home.exists() else []
    return {"home": str(current.home), "files": files, "databases": names, "held": held}


embedded = None if current.external_url else server.EmbeddedServer(current.home)
if embedded:
    embedded.start()
try:
    print("ready", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = {"sql": sql, "close": close, "look": look}[name](*arguments)
        except psycopg.Error as error:
            answer = {"error": str(error)}
        print(json.dumps(answer, default=str), flush=True)
finally:
    close()
    if embedded:
        embedded.stop()
"""

_STAYS = {"mutex", "users", "project", "log", "data", "socket", "postgres"}
"""What the folder of an embedded server holds between runs."""


@dataclass(frozen=True)
class Look:
    """What lies on a project's server, and in its folder."""

    home: Path
    files: set[str]
    databases: list[str]
    held: dict[str, Any]
    """Of each golden database: the schema's hash, the number of rows in each table, customers."""

    @property
    def ours(self) -> list[str]:
        """The names that begin as ours do."""
        return [name for name in self.databases if name.startswith("app_")]


class Console:
    """A session on the project's server, held by a process of its own; keeps the server running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def _ask(self, *words: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the console is gone"
        answer = json.loads(line)
        assert not isinstance(answer, dict) or "error" not in answer, answer
        return answer

    def sql(self, statement: str, database: str = "postgres") -> list[list[Any]]:
        """Run a statement on a connection that stays open. Returns its rows."""
        rows: list[list[Any]] = self._ask("sql", database, statement)
        return rows

    def close(self) -> None:
        """Close the connections, but not the console."""
        self._ask("close")

    def look(self) -> Look:
        """Look at the server from outside."""
        self.close()
        found = self._ask("look")
        return Look(Path(found["home"]), set(found["files"]), found["databases"], found["held"])

    def golden(self) -> str:
        """The name of the one golden database."""
        (name,) = (
            row[0] for row in self.sql("SELECT datname FROM pg_database WHERE datname ~ '^app_g_'")
        )
        return str(name)


@dataclass(frozen=True)
class Small(Project):
    """The project. Every process of its runs is marked; `variables` are in their environment."""

    mark: str = ""
    variables: dict[str, str | None] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    """A command that runs the others, to change what they find."""

    def marked(self, variables: dict[str, str | None]) -> dict[str, str | None]:
        """What is laid over the environment of its processes."""
        return {MARK: self.mark, **self.variables, **variables}

    def begin(self, *options: str, **variables: str | None) -> subprocess.Popen[str]:
        """Start a run in a process group of its own, and don't wait for it."""
        pytest = ("-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider")
        command = [*self.prefix, str(self.python), *pytest, *options]
        return begin(*command, cwd=self.path, env=self.marked(variables))

    def end(self, process: subprocess.Popen[str], timeout: float = 120) -> Outcome:
        """Wait for such a run, and read what it said."""
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            kill(started_with(self.mark))
            output, _ = process.communicate()
            raise AssertionError(f"not done after {timeout:.0f} s:\n{output[-6000:]}") from None
        print(output)
        return Outcome(process.returncode, output, counted(output))

    def outcome(self, *options: str, timeout: float = 120, **variables: str | None) -> Outcome:
        """A run, from start to end, however it ends."""
        return self.end(self.begin(*options, **variables), timeout)

    def green(self, *options: str, timeout: float = 120, **variables: str | None) -> Outcome:
        """A run of the five tests, all passed."""
        return passed(self.outcome(*options, timeout=timeout, **variables))

    def red(self, *options: str, timeout: float = 120, **variables: str | None) -> str:
        """The output of a run that fails, in a way that its user can follow."""
        outcome = self.outcome(*options, timeout=timeout, **variables)
        assert outcome.status not in (0, 5), outcome.output[-6000:]
        assert "INTERNALERROR" not in outcome.output, outcome.output[-6000:]
        return outcome.output

    def tried(
        self, tests: str, *options: str, timeout: float = 120, **variables: str | None
    ) -> Outcome:
        """A run of these tests alone, in a file of theirs that is gone afterwards."""
        with tempfile.NamedTemporaryFile(
            "w", dir=self.path / "tests", prefix="test_tried_", suffix=".py"
        ) as file:
            file.write(tests)
            file.flush()
            return self.outcome(*options, file.name, timeout=timeout, **variables)

    @contextmanager
    def held(self, *options: str, **variables: str | None) -> Iterator[subprocess.Popen[str]]:
        """A run that is in the middle of its test `test_linger`, until the block ends."""
        hold = self.path / "hold"
        process = self.begin(*options, HOLD=str(hold), **variables)
        try:
            wait_until(lambda: hold.exists() or process.poll() is not None, "the test", timeout=60)
            yield process
        finally:
            hold.unlink(missing_ok=True)

    @contextmanager
    def console(self, **variables: str | None) -> Iterator[Console]:
        """A session on its server, which is started if need be."""
        process = subprocess.Popen(
            [*self.prefix, str(self.python), "-c", _CONSOLE],
            cwd=self.path,
            env=overlaid(self.marked(variables)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            yield Console(process)
        finally:
            process.communicate(timeout=60)

    @cached_property
    def home(self) -> Path:
        """The folder of its embedded server."""
        code = "import tests; from tests.harness.environment import current; print(current.home)"
        done = self.run(*self.prefix, self.python, "-c", code, env=self.variables)
        return Path(done.output.strip())

    def harness(self, *words: str) -> str:
        """What `python -m tests.harness` says."""
        command = [*self.prefix, str(self.python), "-m", "tests.harness", *words]
        return self.run(*command, env=self.marked({})).output

    def edit_seeder(self) -> None:
        """Make the next run build its golden database."""
        seeder = self.path / "app/seed_database.py"
        seeder.write_text(f"{seeder.read_text()}# {time.monotonic_ns()}\n")

    def seedings(self) -> int:
        """How often the seeder was started since this was last asked."""
        log = self.path / "seedings"
        count = len(log.read_text()) if log.exists() else 0
        log.unlink(missing_ok=True)
        return count

    def healed(self, complete: Any, *, also: set[str] | None = None, says: str = "") -> float:
        """The next run is green, from complete data, and leaves nothing. Returns its seconds."""
        begun = time.monotonic()
        outcome = self.green()
        golden, _ = outcome.golden()
        seconds = time.monotonic() - begun
        assert says in outcome.output
        assert not started_with(self.mark), started_with(self.mark)
        with self.console() as console:
            look = console.look()
        assert look.held[golden] == complete, "not what a build from nothing gives"
        expected = set(look.held) | (also or set())
        assert set(look.ours) == expected, set(look.ours) ^ expected
        assert look.files <= _STAYS, look.files
        print(f"healed in {seconds:.2f} s")
        return seconds

    def wait_for(self, command: str, process: subprocess.Popen[str]) -> int:
        """Wait until a process of its runs has this in its command line. Returns its id."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            for pid, line in started_with(self.mark).items():
                if command in line:
                    return pid
            time.sleep(0.02)
        raise AssertionError(f"no process {command}:\n{started_with(self.mark)}")


def passed(outcome: Outcome) -> Outcome:
    """The outcome, if it is that of five tests that passed."""
    assert (outcome.status, outcome.counts) == (0, {"passed": PASSED}), outcome.output[-6000:]
    return outcome


def told(output: str) -> dict[str, str]:
    """What a run says of each test that does not pass, by its name without `test_`."""
    found: dict[str, str] = {}
    _, *parts = re.split(
        r"^_+ (?:ERROR at \w+ of )?(?:\w+\.)?test_(\w+)(?:\[.+\])? _+$", output, flags=re.M
    )
    for test, said in zip(parts[::2], parts[1::2], strict=True):
        found[test] = found.get(test, "") + said
    return found


@contextmanager
def complete_service(project: Project, path: Path) -> Iterator[tuple[Small, dict[str, Any]]]:
    """A small service, and what a build from nothing gives in it."""
    with small_service(project, path) as service:
        service.green()
        with service.console() as console:
            (complete,) = console.look().held.values()
        service.seedings()
        yield service, complete


@contextmanager
def small_service(project: Project, path: Path) -> Iterator[Small]:
    """A copy of a rendered service with the tests of this file; its servers go at the end."""
    copy = project.copy_to(path)
    for name in ("unit", "integration", "workflow"):
        shutil.rmtree(path / "tests" / name, ignore_errors=True)
    (path / "tests" / "test_small.py").write_text(TESTS)
    replace(path / "pyproject.toml", " --cov=app --cov-report=term-missing", "")
    replace(path / "app" / "seed_database.py", "import asyncio\n", f"{SEEDER}import asyncio\n")
    small = Small(path, copy.answers, copy.python, new_mark())
    try:
        yield small
    finally:
        kill(started_with(small.mark))
        remove_clusters(path)


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text that a file holds once."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new))


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    """Let a file hold something else for a while."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Wait for something outside."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)
