"""The golden database: complete, verified, seeded and sealed, or not there at all.

It is found by the fingerprint of everything that made it. It is built under another name and
published, with its comment, in one transaction: a builder that dies publishes nothing. It is
healed by replacement, never patched.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import psycopg
from psycopg import sql

from ..checks import failure
from ..environment import Environment
from ..errors import HarnessError
from ..layout import CONFTEST, PACKAGE, ROOT
from ..recipe import Recipe
from ..waiting import polls
from . import databases
from .databases import Connection
from .digest import differences, digest
from .fingerprint import Fingerprint, fingerprint, metadata

_KEEP = 3  # golden databases of this project, for the branches one switches between
_KEEP_DAYS = 7  # of any project, on a server that many share
_POLL = 0.002  # seconds between the first looks at the commands that run
_OUTPUT = 4000  # characters of a failed command that are shown

_NOT_BUILT = "The golden database was not built"
_MAKES_NO_SCHEMA = """
It makes no schemas. Let the metadata make this one before, where it is defined:
    event.listen(Base.metadata, "before_create", CreateSchema("…", if_not_exists=True))
or make the tables by a command, and leave the metadata None."""

_MADE_BEFORE = re.compile(r'(role|tablespace) ".*" already exists')
_OF_THE_SERVER = """
Roles and tablespaces belong to the whole server: an earlier build has made it. Make it only where it is not there."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Golden:
    """A published golden database.

    Attributes:
        name: of the database.
        digest: what it holds, see `digest.digest`.
        story: reused, or built in what time and why; for the header.
    """

    name: str
    digest: dict[str, Any]
    story: str


def ensure(environment: Environment, connection: Connection, recipe: Recipe, say: Say) -> Golden:
    """Find the golden database of the present sources, or build it.

    Processes that come at the same time build it once: one builds, the others wait for it.

    Args:
        environment: of this process.
        connection: to the maintenance database; it holds the lock of the build.
        recipe: the service's.
        say: shows a line about long work.

    Raises:
        HarnessError: a command failed, or somebody else builds for too long.
    """
    wanted = fingerprint(connection, recipe)
    name = f"app_g_{wanted.value[:16]}"
    if golden := _find(connection, name, wanted):
        return golden
    with _build_lock(connection, wanted.value, recipe, say):
        try:
            if golden := _find(connection, name, wanted):  # somebody was quicker
                return golden
            failure.recall(environment)  # or failed
            why = _why(connection, name, wanted)
            say(f"building the golden database: {why}")
            _discard(connection, name)
            return _build(environment, connection, recipe, wanted, name, why)
        except HarnessError as error:
            failure.note(environment, error)
            raise


def discard(connection: Connection, golden: Golden, recipe: Recipe, say: Say) -> None:
    """Drop a golden database whose clone did not hold what it should."""
    # Of what it was made from: the sources may be others by now.
    with _build_lock(connection, golden.name.removeprefix("app_g_"), recipe, say):
        _discard(connection, golden.name)


def _find(connection: Connection, name: str, wanted: Fingerprint) -> Golden | None:
    """The published database of a fingerprint, by its name, its seal and its comment.

    Whether it still holds what was published, its first clone tells.
    """
    for database in databases.ours(connection):
        if database.name == name and database.sealed and not database.given_up:
            notes = database.notes
            if notes.get("fingerprint") == wanted.value:
                return Golden(name, notes["digest"], "reused")
    return None


@contextmanager
def _build_lock(connection: Connection, value: str, recipe: Recipe, say: Say) -> Iterator[None]:
    _wait_for_build_lock(connection, value, recipe, say)
    try:
        yield
    finally:
        databases.release_build_lock(connection, value)


def _wait_for_build_lock(connection: Connection, value: str, recipe: Recipe, say: Say) -> None:
    patience = recipe.timeout * (len(recipe.steps) + 1)
    told = False
    for waited in polls(patience, 0.02):
        if databases.try_build_lock(connection, value):
            return
        if waited > 1 and not told:
            who = databases.build_lock_holder(connection, value)
            say(f"waiting for the golden database, built by {who}")
            told = True
    who = databases.build_lock_holder(connection, value)
    raise HarnessError(
        f"Waited {patience:.0f} s for the golden database that {who} builds. If it hangs, stop it and run again."
    )


def _why(connection: Connection, name: str, wanted: Fingerprint) -> str:
    """The reason for a build, in words."""
    published = [d for d in databases.ours(connection) if d.kind == "g"]
    if any(d.name == name for d in published):
        return "the one there was damaged"
    mine = [d.notes for d in published if d.is_of_this_project]
    if not mine:
        return "there was none"
    last = max(mine, key=lambda notes: str(notes.get("built")))
    changed = wanted.changes(last.get("parts", {}))
    return f"{', '.join(changed)} changed"


def _discard(connection: Connection, name: str) -> None:
    databases.drop_named(connection, name)
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
        raise HarnessError(
            f"The tests' server has a database {name} that the harness did not make, or that another "
            "role owns. It is not touched; rename or drop it, or use another server."
        )


def _build(
    environment: Environment,
    connection: Connection,
    recipe: Recipe,
    wanted: Fingerprint,
    name: str,
    why: str,
) -> Golden:
    begun = time.perf_counter()
    temporary = f"app_b_{wanted.value[:16]}_{environment.run}_{secrets.token_hex(4)}"
    databases.create(connection, temporary, template="template0")
    try:
        with databases.connect(environment, temporary) as inside:
            for extension in recipe.extensions:
                _create_extension(inside, extension)
            bare = digest(inside)
        _create_all(environment, recipe, temporary)
        for commands in recipe.steps:
            _run(environment, recipe, temporary, commands)
        with databases.connect(environment, temporary) as inside:
            held = digest(inside)
            if recipe.steps and held == bare:
                _refuse_empty(environment, temporary)
            _check_seeded(recipe, held)
            databases.compact(inside)
        # The next session leaves a file from which others learn of the catalogs, and clones inherit
        # it: 3 ms less for the first connection to each of them.
        databases.connect(environment, temporary).close()
        seconds = time.perf_counter() - begun
        notes = {
            "fingerprint": wanted.value,
            "project": str(ROOT),
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "parts": wanted.parts,
            "digest": held,
        }
        if changed := fingerprint(connection, recipe).changes(wanted.parts):
            raise HarnessError(
                f"{', '.join(changed)} changed while the golden database was built from it. Nothing was published; "
                "run again."
            )
        databases.disconnect(connection, temporary)
        _publish(connection, temporary, name, json.dumps(notes))
    except BaseException:
        databases.drop_named(connection, temporary)
        raise
    _drop_old(connection, keep=name)
    return Golden(name, held, f"built in {seconds:.1f} s: {why}")


def _create_extension(connection: Connection, name: str) -> None:
    try:
        connection.execute(
            sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(name))
        )
    except psycopg.errors.InsufficientPrivilege as error:
        raise HarnessError(
            f"The role {connection.info.user} may not create the extension {name} on the tests' server: "
            f"{error.diag.message_hint or error}\nName a role that may in TEST_DATABASE_URL, or unset the variable to use the "
            "embedded server."
        ) from error


def _check_names(found: Sequence[Any]) -> None:
    """SQLAlchemy makes the first table of a name, and takes a second for made."""
    first: dict[str, Any] = {}
    for name, table in ((n, t) for tables in found for n, t in tables.tables.items()):
        made = {column.name for column in first.setdefault(name, table).columns}
        if lacking := {column.name for column in table.columns} - made:
            raise HarnessError(
                f"{_NOT_BUILT}: two metadata of the recipe have a table {name}, and that of the first lacks "
                f"{', '.join(sorted(lacking))}. Nothing was published.\nTests have one database, whose tables have names of "
                "their own: let one of the two have another name, or a schema. If they are the same, name the whole one first."
            )


def _create_all(environment: Environment, recipe: Recipe, database: str) -> None:
    found = metadata(recipe)
    if not found:
        return
    _check_names(found)
    import sqlalchemy

    # The same dialect as the service's, without an event loop.
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: databases.connect(environment, database),
        poolclass=sqlalchemy.NullPool,
    )
    for tables in found:
        try:
            tables.create_all(engine)
        except sqlalchemy.exc.DBAPIError as error:
            said, hint = str(error.orig).strip(), ""
            if isinstance(error.orig, psycopg.errors.InvalidSchemaName):
                hint = _MAKES_NO_SCHEMA
            elif isinstance(error.orig, psycopg.errors.UndefinedObject):
                hint = f"\nIs it of an extension? See `extensions` in {CONFTEST}."
            raise HarnessError(
                f"{_NOT_BUILT}: create_all can't make a table. Nothing was published.\n{said}{hint}"
            ) from error


@dataclass(frozen=True)
class _Running:
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    output: IO[bytes]


def _run(
    environment: Environment, recipe: Recipe, database: str, commands: Sequence[Sequence[str]]
) -> None:
    """Run a step of the recipe against a database: each of its commands in a process of its own.

    Their environment is this one's, so that what was set for the tests reaches them; a crash is
    their own, too. Raises HarnessError with the command, its status and its output when one fails.
    """
    variables = os.environ | environment.variables(database)
    with ExitStack() as stack:
        with _group() as group:
            running = [stack.enter_context(_started(c, variables, group)) for c in commands]
            failed = _wait(running, recipe.timeout)
        if failed:
            one, how = failed
            said = _end_of(one.output) or "(no output)"
            hint = _OF_THE_SERVER if _MADE_BEFORE.search(said) else ""
            raise HarnessError(
                f"{_NOT_BUILT}: a command {how}. Nothing was published.\n"
                f"$ {shlex.join(one.command)}\n{said}{hint}"
            )


@contextmanager
def _group() -> Iterator[int]:
    """The number of a process group that ends with this block, or with us, whatever ends us."""
    # Its first process waits for our end of a pipe to close, by what the shell can do itself: PATH may
    # be anything. It is there before the commands, which join the group before they hold no copy of
    # that end.
    with subprocess.Popen(
        ["/bin/sh", "-c", "read nothing; kill -9 0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as guardian:
        yield guardian.pid


@contextmanager
def _started(command: Sequence[str], variables: dict[str, str], group: int) -> Iterator[_Running]:
    """A command that was started in a process group, and at the end of this block has ended."""
    with tempfile.TemporaryFile() as output:  # no pipe: a child that outlives it would keep it open
        try:
            process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=group,
            )
        except OSError as error:
            raise HarnessError(
                f"{_NOT_BUILT}: a command can't be started.\n$ {shlex.join(command)}\n{error}"
            ) from error
        try:
            yield _Running(command, process, output)
        finally:
            process.wait()


def _wait(running: Sequence[_Running], timeout: float) -> tuple[_Running, str] | None:
    """Wait until all have ended, or one has failed: which one, and how."""
    waiting: list[_Running] = []
    for _ in polls(timeout, _POLL):
        waiting = [one for one in running if one.process.poll() is None]
        for one in running:
            if one.process.returncode:
                return one, f"ended with status {one.process.returncode}"
        if not waiting:
            return None
    return waiting[0], f"did not end within {timeout:.0f} s"


def _end_of(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _OUTPUT))
    return output.read().decode(errors="replace").strip()


def _refuse_empty(environment: Environment, database: str) -> None:
    """Where the commands went instead, the tests would go next, and empty its tables."""
    raise HarnessError(
        f"{_NOT_BUILT}: the commands succeeded, and it is as empty as before. Nothing was published.\n"
        f"They are told of it by {', '.join(environment.variables(database))}. If they read another variable, they "
        f"have filled another database: name that one to prepare() in {PACKAGE}."
    )


def _check_seeded(recipe: Recipe, held: dict[str, Any]) -> None:
    for table in recipe.seeded:
        names = (f"public.{table}", table)
        rows = max(held["tables"].get(name, (0, ""))[0] for name in names)
        if not rows:
            raise HarnessError(
                f"The seed commands succeeded, but left the table {table} empty or missing. "
                f"Nothing was published. See `seeded` in {CONFTEST}."
            )


def _publish(connection: Connection, temporary: str, name: str, comment: str) -> None:
    """Give the finished database its name: all of it, or, when anything fails, nothing."""
    with connection.transaction():
        target = sql.Identifier(name)
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(temporary), target)
        )
        connection.execute(
            sql.SQL("ALTER DATABASE {} IS_TEMPLATE true ALLOW_CONNECTIONS false").format(target)
        )
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(target, sql.Literal(comment))
        )


def _drop_old(connection: Connection, keep: str) -> None:
    """Drop those that are probably not asked for again: by this project, all but the newest; by any, the old."""
    old = datetime.now(UTC) - timedelta(days=_KEEP_DAYS)
    published = [d for d in databases.ours(connection) if d.kind == "g" and d.name != keep]
    mine = [d for d in published if d.is_of_this_project]
    expired = [d for d in published if d.notes.get("built", "") < old.isoformat()]
    databases.drop(connection, {d.name: d for d in [*mine[: -(_KEEP - 1)], *expired]}.values())


def verify(connection: Connection, golden: Golden) -> list[str]:
    """How a clone differs from what was published; empty when it does not.

    Args:
        connection: to the clone.
        golden: what it was cloned from.
    """
    return differences(digest(connection), golden.digest)
