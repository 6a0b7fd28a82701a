"""The harness's databases on a server: their names, how they are known as ours, how they go.

    app_g_<fingerprint>               golden: complete, seeded, sealed; cloned, never connected to
    app_b_<fingerprint>_<run>_<hex>   a golden database while it is built
    app_w_<run>_<worker>              what the tests of a worker see
    app_s_<run>_<worker>_<n>          spare clone that waits to become the worker's database
    app_d_<run>_<worker>_<n>          dirty, about to be dropped
    app_k_<run>_<worker>_<n>          kept for the user: a test failed on it

A database is ours when its name matches exactly, our role owns it and it carries `MARK`. Nothing
else is ever renamed, written or dropped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tests.harness.environment import Environment
from tests.harness.errors import HarnessError

MAINTENANCE = "postgres"
"""Advisory locks are per database: all processes of the harness take theirs in this one."""

MARK = 1_070_777
"""Our connection limit: high enough to be none, odd enough to be ours. Of all attributes of a
database it is the one that is set by CREATE DATABASE itself, so that no crash can leave an
unmarked one."""

_INVALID = -2  # datconnlimit after an interrupted DROP DATABASE

_RUN_LOCK = 0x61707001  # class of the advisory locks: "app" and a number
_BUILD_LOCK = 0x61707002

_GOLDEN = r"app_g_[0-9a-f]{16}"
_OF_A_RUN = (
    r"app_(?:b_[0-9a-f]{16}_([0-9a-f]{8})_[0-9a-f]{8}|[wsdk]_([0-9a-f]{8})_[a-z0-9]+(?:_[0-9]+)?)"
)

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Database:
    """One of ours, as the catalog shows it."""

    name: str
    oid: int
    sealed: bool
    valid: bool
    comment: str

    @property
    def run(self) -> str | None:
        """The run it belongs to; None for a golden one."""
        found = re.fullmatch(_OF_A_RUN, self.name)
        return (found[1] or found[2]) if found else None

    @property
    def kind(self) -> str:
        """The letter after `app_`."""
        return self.name[4]


APPLICATION = "tests.harness"
"""Begin of the `application_name` of the harness's own connections."""


def connect(environment: Environment, database: str = MAINTENANCE) -> Connection:
    """An autocommit connection to a database of the tests' server.

    Raises:
        HarnessError: the server can't be reached, or refuses.
    """
    name = f"{APPLICATION} {environment.run} {environment.worker}"
    try:
        return psycopg.connect(
            environment.conninfo(database),
            autocommit=True,
            connect_timeout=3,
            application_name=name,
        )
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise HarnessError(_cannot_connect(environment, database, str(error).strip())) from error


def _cannot_connect(environment: Environment, database: str, reason: str) -> str:
    where = (
        "TEST_DATABASE_URL"
        if environment.external_url
        else f"the embedded server in {environment.home}"
    )
    return f"The tests' database server ({where}) refuses a connection to {database!r}:\n{reason}"


def ours(connection: Connection) -> list[Database]:
    """All databases of the harness on this server that belong to our role, the oldest first."""
    rows = connection.execute(
        """
        SELECT datname, oid, datistemplate AND NOT datallowconn, datconnlimit = %(mark)s,
               coalesce(shobj_description(oid, 'pg_database'), '')
        FROM pg_database
        WHERE datname ~ %(pattern)s
          AND datdba = current_user::regrole
          AND datconnlimit IN (%(mark)s, %(invalid)s)
        ORDER BY oid
        """,
        {"mark": MARK, "invalid": _INVALID, "pattern": f"^(?:{_GOLDEN}|{_OF_A_RUN})$"},
    )
    return [Database(*row) for row in rows]


def create(connection: Connection, name: str, template: str) -> None:
    """Make an empty database from `template0`, or a clone of a golden one."""
    # Copying files is four times as fast as logging blocks, where the checkpoint it needs is free.
    row = connection.execute("SHOW fsync").fetchone()
    strategy = "FILE_COPY" if row == ("off",) else "WAL_LOG"
    connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {} CONNECTION LIMIT {}").format(
            sql.Identifier(name), sql.Identifier(template), sql.SQL(strategy), sql.Literal(MARK)
        )
    )


def drop(connection: Connection, databases: Iterable[Database]) -> None:
    """Drop databases that `ours` returned.

    Raises:
        HarnessError: somebody else is connected and can't be disconnected; names them.
    """
    for database in databases:
        name = sql.Identifier(database.name)
        if database.kind == "g" and database.valid:
            connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
        try:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        except (psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege) as error:
            raise HarnessError(_occupied(connection, database.name)) from error


def disconnect(connection: Connection, name: str, timeout: float = 5) -> None:
    """End all sessions of a database of ours and wait until they are gone.

    Raises:
        HarnessError: one can't be ended within `timeout` seconds; names it.
    """
    deadline = time.monotonic() + timeout
    sessions = "FROM pg_stat_activity WHERE datname = %s"
    while connection.execute(f"SELECT 1 {sessions} LIMIT 1", (name,)).fetchone():
        try:
            connection.execute(f"SELECT pg_terminate_backend(pid, 500) {sessions}", (name,))
        except psycopg.errors.InsufficientPrivilege as error:
            raise HarnessError(_occupied(connection, name)) from error
        if time.monotonic() > deadline:
            raise HarnessError(_occupied(connection, name))


def _occupied(connection: Connection, name: str) -> str:
    return f"{name} is needed, but these sessions can't be ended:\n{describe_sessions(connection, name)}"


def describe_sessions(connection: Connection, database: str) -> str:
    """Who, but for the harness, is connected to a database: a line for each session.

    A line holds the process, the program, the state and the last query.
    """
    rows = connection.execute(
        """
        SELECT format('  process %%s, %%s, %%s: %%s', pid, coalesce(nullif(application_name, ''), 'unnamed'),
                      coalesce(state, backend_type), left(regexp_replace(query, '\\s+', ' ', 'g'), 200))
        FROM pg_stat_activity
        WHERE datname = %s AND NOT starts_with(application_name, %s) ORDER BY pid
        """,
        (database, APPLICATION),
    ).fetchall()
    return "\n".join(row[0] for row in rows)


def deferred_constraints(connection: Connection) -> list[str]:
    """Quoted names of the constraints that Postgres checks at COMMIT."""
    rows = connection.execute(
        """
        SELECT format('%I.%I', n.nspname, c.conname)
        FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE c.condeferred
        """
    ).fetchall()
    return [row[0] for row in rows]


def reset_sequences(connection: Connection) -> str:
    """SQL that sets each sequence to what it is now: a rollback does not."""
    rows = connection.execute(
        """
        SELECT format('setval(%L, %s, %L)', format('%I.%I', schemaname, sequencename),
                      coalesce(last_value, start_value), last_value IS NOT NULL)
        FROM pg_sequences ORDER BY 1
        """
    ).fetchall()
    return f"SELECT {', '.join(row[0] for row in rows)}" if rows else ""


def hold_run(connection: Connection, run: str) -> None:
    """Hold the run's databases against the sweep, for as long as the connection lives."""
    connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", (_RUN_LOCK, _key(run)))


def try_build_lock(connection: Connection, fingerprint: str) -> bool:
    """Take the right to build a golden database; True if it is ours now."""
    row = connection.execute(
        "SELECT pg_try_advisory_lock(%s, %s)", (_BUILD_LOCK, _key(fingerprint))
    ).fetchone()
    return row == (True,)


def release_build_lock(connection: Connection, fingerprint: str) -> None:
    """Give that right back."""
    connection.execute("SELECT pg_advisory_unlock(%s, %s)", (_BUILD_LOCK, _key(fingerprint)))


def build_lock_holder(connection: Connection, fingerprint: str) -> str:
    """Who builds: process and program."""
    row = connection.execute(
        """
        SELECT format('process %%s (%%s)', pid, application_name) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND classid = %s::bigint AND objid = (%s::bigint & 4294967295) AND granted
        """,
        (_BUILD_LOCK, _key(fingerprint)),
    ).fetchone()
    return row[0] if row else "nobody any more"


def sweep(connection: Connection, run: str, *, kept: int = 5) -> list[str]:
    """Drop what dead runs left behind, but for the newest databases kept for the user.

    Returns:
        The names that were dropped.
    """
    found = [d for d in ours(connection) if d.run not in (None, run)]
    keep = [d for d in found if d.kind == "k"][-kept:]
    dropped = []
    for dead in {d.run for d in found if d.run}:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(%s, %s)", (_RUN_LOCK, _key(dead))
        ).fetchone()
        if row != (True,):
            continue  # it lives
        try:
            leftovers = [d for d in found if d.run == dead and d not in keep]
            drop(connection, leftovers)
            dropped += [d.name for d in leftovers]
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", (_RUN_LOCK, _key(dead)))
    return dropped


def _key(name: str) -> int:
    """The first 32 bits of a hexadecimal name, as Postgres' signed integer."""
    return int.from_bytes(bytes.fromhex(name[:8]), signed=True)
