"""The database of `make run`: made whole and filled once, later migrated, or left as it is.

Both happen to a database of another name, which takes this one's place in a single transaction.
Whatever fails or is killed in between, what was there is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
from psycopg import sql

from ..errors import HarnessError
from ..golden import databases
from ..layout import ROOT
from .postgres import ROLE, DevelopmentServer
from .stopping import undisturbed

NAME = "development"
MIGRATIONS = ROOT / "migrations"
NONE_YET = "There is no database yet: make run makes it."

_OUTPUT = 6000  # characters of a failed command that are shown
_UPGRADE = re.compile(r"Running upgrade +(.*?)(?: +\[alembic|\s*$)", re.MULTILINE)

Connection = psycopg.Connection[Any]
Command = tuple[Sequence[str], str]
"""A command, and what it reads."""


def ensure(
    server: DevelopmentServer,
    extensions: Sequence[str],
    variables: Mapping[str, str],
    accounts: Mapping[str, Command],
    say: Callable[[str], None],
) -> list[str]:
    """Have the database there, with all migrations. Returns the accounts that were made in it.

    Args:
        server: it runs.
        extensions: what takes a superuser, which migrations are not.
        variables: for the service, but for the URL of the database.
        accounts: for a new database, what makes them.
        say: shows a line.

    Raises:
        HarnessError: a command failed; with its output. The database is as it was.
    """
    begun = time.perf_counter()
    with server.connect() as connection:
        sweep(connection)
        _have_role(connection, server.role_password)
        exists = _look(connection) is not None
        notes = _notes(connection)
        made: list[str] = notes.get("accounts", [])
        before = _state(server, NAME) if exists else {}
        if exists and notes == {**before, "accounts": made}:
            return made
        fresh = f"{NAME}_{secrets.token_hex(4)}"
        variables = {**variables, "DATABASE_URL": server.url(fresh, "postgresql+asyncpg")}
        try:
            if exists:
                _seal(connection)  # what somebody stores there from now on would be lost
            _create(connection, fresh, template=NAME if exists else "template0")
            _extend(server, fresh, extensions)
            said = _run([_make("migrate")], variables, "The migration failed")
            if not exists:
                _run([_make("seed")], variables, "Filling the database failed")
                _run([*accounts.values()], variables, "An account could not be made")
                made = [*accounts]
            after = _state(server, fresh)
            _publish(connection, fresh, json.dumps({**after, "accounts": made}))
        finally:
            sweep(connection)
    if not exists:
        say(f"database made, migrated and filled in {time.perf_counter() - begun:.1f} s")
    elif before["revisions"] != after["revisions"]:
        unnamed = [f"{' '.join(before['revisions'])} -> {' '.join(after['revisions'])}"]
        for upgrade in _UPGRADE.findall(said) or unnamed:  # where they are not logged
            say(f"migrated: {upgrade}")
    return made


def is_closed(connection: Connection) -> bool:
    """Whether a migration was killed, or is being run by somebody else.

    Raises:
        HarnessError: it was never made.
    """
    if (found := _look(connection)) is None:
        raise HarnessError(NONE_YET)
    return not found[0]


def sweep(connection: Connection) -> None:
    """Remove what was not finished, and open what was closed for it."""
    rows = connection.execute("SELECT datname, datallowconn FROM pg_database").fetchall()
    for name, open_ in rows:
        if re.fullmatch(rf"{NAME}_[0-9a-f]{{8}}", name):
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )
        elif name == NAME and not open_:
            _allow(connection, "true")


def _have_role(connection: Connection, password: str) -> None:
    query = "SELECT 1 FROM pg_roles WHERE rolname = %s"
    if connection.execute(query, (ROLE,)).fetchone() is None:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                sql.Identifier(ROLE), sql.Literal(password)
            )
        )


def _look(connection: Connection) -> tuple[bool, str | None] | None:
    """Whether the database lets anybody in, and what was noted of it; None if there is none."""
    query = "SELECT datallowconn, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
    return connection.execute(query, (NAME,)).fetchone()


def _allow(connection: Connection, whether: str) -> None:
    connection.execute(
        sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
            sql.Identifier(NAME), sql.SQL(whether)
        )
    )


def _seal(connection: Connection) -> None:
    _allow(connection, "false")
    query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
    connection.execute(query, (NAME,))


def _create(connection: Connection, name: str, template: str) -> None:
    connection.execute(
        sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY").format(
            sql.Identifier(name), sql.Identifier(ROLE), sql.Identifier(template)
        )
    )
    databases.inherit(connection, name, template)


def _extend(server: DevelopmentServer, name: str, extensions: Sequence[str]) -> None:
    with server.connect(name) as connection:
        for extension in extensions:
            connection.execute(
                sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(extension))
            )


def _publish(connection: Connection, fresh: str, notes: str) -> None:
    """Let one database take the other's place, with notes of what was done to it."""
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with connection.transaction():
        if _look(connection) is not None:
            old = sql.Identifier(f"{NAME}_{secrets.token_hex(4)}")
            connection.execute(rename.format(sql.Identifier(NAME), old))
        connection.execute(rename.format(sql.Identifier(fresh), sql.Identifier(NAME)))
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(NAME), sql.Literal(notes))
        )


def _notes(connection: Connection) -> dict[str, Any]:
    """What was noted when it took its place."""
    _, notes = _look(connection) or (False, None)
    try:
        return dict(json.loads(notes)) if notes else {}
    except ValueError:
        return {}


def _state(server: DevelopmentServer, database: str) -> dict[str, Any]:
    """The migrations that are in the sources, and the last ones that a database has."""
    seen = hashlib.sha256()
    for path in sorted(MIGRATIONS.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            seen.update(f"{path.relative_to(MIGRATIONS)} {len(content)} ".encode() + content)
    with server.connect(database) as connection:
        rows = []
        if connection.execute("SELECT to_regclass('alembic_version')").fetchone() != (None,):
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return {"migrations": seen.hexdigest(), "revisions": sorted(name for (name,) in rows)}


def _make(target: str) -> Command:
    return ["make", "--silent", "--jobs", target], ""


def _run(commands: Sequence[Command], variables: Mapping[str, str], failed: str) -> str:
    """Run commands of the project at the same time. Returns what they said.

    Raises:
        HarnessError: one failed; with what it said.
    """
    mine = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    said = []
    with ExitStack() as stack:
        running = []
        for words, reads in commands:
            output = stack.enter_context(tempfile.TemporaryFile())
            with undisturbed():
                process = subprocess.Popen(
                    words,
                    cwd=ROOT,
                    env={**mine, **variables},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    encoding="utf-8",
                )
                stack.callback(_end, process)
            running.append((words, process, reads, output))
        for words, process, reads, output in running:
            process.communicate(reads)
            output.seek(0)
            said.append(output.read().decode(errors="replace").strip())
            if process.returncode:
                raise HarnessError(
                    f"{said[-1][-_OUTPUT:]}\n\n{failed}: {shlex.join(words)} ended with status "
                    f"{process.returncode}. What was stored is as it was."
                )
    return "\n".join(said)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()
