"""The harness's databases on a server: their names, how they are known as ours, how they go.

    app_g_<fingerprint>               golden: complete, seeded, sealed; cloned, never connected to
    app_b_<fingerprint>_<run>_<hex>   a golden database while it is built
    app_w_<run>_<worker>              what the tests of a worker see
    app_s_<run>_<worker>_<n>          spare clone that waits to become the worker's database
    app_d_<run>_<worker>_<n>          dirty, about to be dropped
    app_k_<run>_<worker>_<n>          kept for the user: a test failed on it

A database is ours when its name matches exactly, our role owns it and it carries `MARK`. Nothing
else is ever renamed, written or dropped.

Harnesses of several versions may share a server. What one takes for granted about the others' is
the names, `MARK` and the numbers of the locks: change one, and change all, so that it sees theirs no
more.
"""

from __future__ import annotations

import json
import re
import time
import weakref
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg import sql

from ..environment import Environment
from ..errors import HarnessError

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

_PATIENCE = 120.0  # seconds that a statement of the harness's own may take


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait for ever: a server that is stopped never answers."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().wait(_impatient(gen), *args, **kwargs)
        except TimeoutError as error:
            self.pgconn.finish()  # in the middle of an answer: of no use any more
            raise psycopg.OperationalError(str(error)) from None


def _impatient(gen: Any) -> Generator[Any, Any, Any]:
    """The same generator, until our patience is at an end: psycopg resumes it ten times a second."""
    deadline = time.monotonic() + _PATIENCE
    try:
        waits_for = next(gen)
        while True:
            ready = yield waits_for
            if not ready and time.monotonic() > deadline:
                raise TimeoutError(
                    f"the server does not answer any more: waited {_PATIENCE:.0f} s. Is its process stopped, or "
                    "does something hold a lock that the harness needs?"
                )
            waits_for = gen.send(ready)
    except StopIteration as end:
        return end.value


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

# What a server, a role or the shell may have set otherwise. Each value has one text, wherever it is read.
_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}

FULL = re.compile("too many (?:clients|connections)|connection slots")
"""What a server says when all its connections are taken."""

_FULL_SECONDS = 10.0  # that a run waits for others to close connections

_opened: weakref.WeakSet[Connection] = weakref.WeakSet()
"""This process's connections: one of them can tell who holds all the others."""


def connect(environment: Environment, database: str = MAINTENANCE) -> Connection:
    """An autocommit connection to a database of the tests' server.

    Where all connections are taken, waits for one.

    Raises:
        HarnessError: the server can't be reached, or refuses.
    """
    name = f"{APPLICATION} {environment.run} {environment.worker}"
    deadline = time.monotonic() + _FULL_SECONDS
    while True:
        try:
            connection = Connection.connect(
                environment.conninfo(database),
                autocommit=True,
                connect_timeout=3,
                application_name=name,
                client_encoding="UTF8",  # of SQL_ASCII, psycopg makes bytes
                prepare_threshold=None,  # after each DDL, psycopg would have to forget them
            )
            # Those that this version of Postgres has.
            connection.execute(
                """
                SELECT set_config(name, value, false)
                FROM jsonb_each_text(%s::jsonb) AS wanted(name, value)
                WHERE current_setting(name, true) IS NOT NULL
                """,
                (json.dumps(_SETTINGS),),
            )
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
            full = FULL.search(str(error))
            if full and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            reason = _without_password(str(error).strip(), environment)
            if full:
                reason += f"\nWaited {_FULL_SECONDS:.0f} s for one. {holders(environment)}"
            # The cause without its traceback: pytest shows arguments there, a password among them.
            raise HarnessError(_cannot_connect(environment, database, reason)) from (
                type(error)(reason)
            )
        _opened.add(connection)
        return connection


def _cannot_connect(environment: Environment, database: str, reason: str) -> str:
    if environment.external_url is None:
        return (
            f"No connection to {database!r} on the tests' embedded server in {environment.home}:\n{reason}\n"
            "If it does so again, let `python -m tests.harness clean` remove that server."
        )
    where = re.sub("^[^:]*://(?:[^@/]*@)?|[/?].*", "", environment.external_url)
    return (
        f"No connection to {database!r}, from where the harness works, on the server of TEST_DATABASE_URL"
        f"{where and f' ({where})'}:\n{reason}\n"
        "Correct TEST_DATABASE_URL or the server, or unset the variable to use the embedded server."
    )


def _without_password(text: str, environment: Environment) -> str:
    """Some errors quote the URL."""
    found = re.search("://[^@/]*?:([^@]+)@", environment.external_url or "")
    for secret in {found[1], unquote(found[1])} if found else ():
        text = text.replace(secret, "***")
    return text


def holders(environment: Environment) -> str:
    """How many connections there may be, and who holds them, as far as that can be seen."""
    for connection in list(_opened):
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            rows = connection.execute(
                """
                SELECT format('  %s of %s in %s: process %s', count(*), coalesce(nullif(application_name, ''), 'unnamed'),
                              coalesce(datname, 'no database'), array_to_string((array_agg(pid ORDER BY pid))[:5], ', ')
                              || CASE WHEN count(*) > 5 THEN ', …' ELSE '' END)
                FROM pg_stat_activity WHERE usesysid IS NOT NULL
                GROUP BY application_name, datname ORDER BY count(*) DESC LIMIT 10
                """
            ).fetchall()
            limit = connection.execute("SHOW max_connections").fetchone()
            assert limit is not None
            return f"All {limit[0]} (max_connections) are held:\n" + "\n".join(r[0] for r in rows)
    if environment.external_url is None:
        from ..servers.postgres import EmbeddedServer

        return EmbeddedServer(environment.home).holders()
    return (
        "Who holds them, a superuser can see, for whom the last ones are reserved:\n"
        "  SELECT pid, usename, application_name, datname, state FROM pg_stat_activity"
    )


def tells_of_damage(error: psycopg.Error) -> bool:
    """Whether the server found its own files, those of a database, not as they should be."""
    return (error.sqlstate or "")[:2] in ("XX", "58")


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
    row = connection.execute(
        """
        SELECT current_setting('fsync'), pg_encoding_to_char(encoding), datcollate
        FROM pg_database WHERE datname = %s
        """,
        (template,),
    ).fetchone()
    fsync, encoding, locale = row or ("", "", "")  # gone: CREATE DATABASE says so
    strategy = "FILE_COPY" if fsync == "off" else "WAL_LOG"
    # What initdb gives without LANG. No service means that: its text would be bytes.
    text = "ENCODING 'UTF8'" if (encoding, locale) == ("SQL_ASCII", "C") else ""
    connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {} CONNECTION LIMIT {} {}").format(
            *(sql.Identifier(name), sql.Identifier(template), sql.SQL(strategy)),
            *(sql.Literal(MARK), sql.SQL(text)),
        )
    )


def drop(connection: Connection, databases: Iterable[Database], timeout: float = 5) -> None:
    """Drop databases that `ours` returned: all that can be.

    Raises:
        HarnessError: somebody else is connected and can't be disconnected within `timeout` seconds;
            names them.
    """
    problems = []
    for database in databases:
        name = sql.Identifier(database.name)
        if database.kind == "g" and database.valid:
            connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
        try:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        except (psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege):
            # A superuser's session, or one of the server's own, which it ends for any owner.
            try:
                disconnect(connection, database.name, timeout)
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
            except HarnessError as error:
                problems.append(str(error))
            except psycopg.errors.ObjectInUse:
                problems.append(_occupied(connection, database.name))
    if problems:
        raise HarnessError("\n".join(problems))


def disconnect(connection: Connection, name: str, timeout: float = 5) -> None:
    """End all sessions of a database of ours and wait until they are gone.

    One that we may not end, such as a superuser's, may leave by itself.

    Raises:
        HarnessError: there is one left after `timeout` seconds; names it.
    """
    deadline = time.monotonic() + timeout
    while pids := connection.execute(
        # The server's own, such as those of autovacuum, have no user, and give way by themselves.
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL",
        (name,),
    ).fetchall():
        for pid in pids:
            with suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT pg_terminate_backend(%s)", pid)
        if time.monotonic() > deadline:
            raise HarnessError(_occupied(connection, name))
        time.sleep(0.001)


def _occupied(connection: Connection, name: str) -> str:
    who = "\n".join(describe_sessions(connection, name, ours=True))
    return f"{name} is to be dropped, renamed or cloned, but these sessions of it can't be ended. Close them:\n{who}"


def describe_sessions(connection: Connection, database: str, *, ours: bool = False) -> list[str]:
    """Who is connected to a database, a line each: process, program, state and last query.

    Args:
        connection: to any database of the server.
        database: its name.
        ours: the harness's own sessions, too.
    """
    rows = connection.execute(
        """
        SELECT format('  process %%s, %%s, %%s: %%s', pid, coalesce(nullif(application_name, ''), 'unnamed'),
                      coalesce(state, backend_type, 'of ' || usename),
                      left(regexp_replace(query, '\\s+', ' ', 'g'), 200))
        FROM pg_stat_activity
        WHERE datname = %s AND usesysid IS NOT NULL AND (%s OR NOT starts_with(application_name, %s))
        ORDER BY pid
        """,
        (database, ours, APPLICATION),
    ).fetchall()
    return [row[0] for row in rows]


def compact(connection: Connection) -> None:
    """Make a database that is complete cheap to copy: fewer files, and nothing left to vacuum."""
    connection.execute("VACUUM (FREEZE, ANALYZE)")
    # Rewritten, the catalogs lose the two files that go with each table to speed up later writes and
    # vacuums: a fifth of all files, and of the time that a copy takes.
    row = connection.execute(
        """
        SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
        WHERE relkind = 'r' AND NOT relisshared
          AND relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        """
    ).fetchone()
    assert row is not None
    connection.execute(f"VACUUM (FULL, FREEZE) {row[0]}")


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


def sweep(connection: Connection, run: str, *, kept: int = 5) -> tuple[list[str], list[str]]:
    """Drop what dead runs left behind, but for the newest databases kept for the user.

    Returns:
        The names that were dropped, and what is in the way of others.
    """
    found = [d for d in ours(connection) if d.run not in (None, run)]
    keep = [d for d in found if d.kind == "k"][-kept:] if kept else []
    leftovers, problems = [], []
    for dead in {d.run for d in found if d.run}:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(%s, %s)", (_RUN_LOCK, _key(dead))
        ).fetchone()
        if row != (True,):
            continue  # it lives
        mine = [d for d in found if d.run == dead and d not in keep]
        leftovers += mine
        try:
            drop(connection, mine, timeout=0.5)
        except HarnessError as error:  # of no concern to this run
            problems.append(str(error))
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", (_RUN_LOCK, _key(dead)))
    there = {d.oid for d in ours(connection)} if problems else set()
    return [d.name for d in leftovers if d.oid not in there], problems


def _key(name: str) -> int:
    """The first 32 bits of a hexadecimal name, as Postgres' signed integer."""
    return int.from_bytes(bytes.fromhex(name[:8]), signed=True)
