"""The harness's databases on a server: their names, how they are known as ours, how they go.

    app_g_<fingerprint>               golden: complete, seeded, sealed; cloned, never connected to
    app_b_<fingerprint>_<run>_<hex>   a golden database while it is built
    app_w_<run>_<worker>              what the tests of a worker see
    app_s_<run>_<worker>_<n>          spare clone that waits to become the worker's database
    app_d_<run>_<worker>_<n>          dirty, about to be dropped
    app_k_<run>_<worker>_<n>          kept for the user: a test failed on it
    app_t_<run>_<worker>_<n>          what a wider fixture stored, for the tests of its scope

A database is ours when its name matches exactly, our role owns it and it carries `MARK`, or what an
interrupted DROP DATABASE puts in its place. Nothing else is ever renamed, written or dropped.

Harnesses of several versions may share a server. What one takes for granted about the others' is
the names, `MARK` and the numbers of the locks: change one, and change all, so that it sees theirs no
more.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, LiteralString
from urllib.parse import unquote

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ..environment import Environment
from ..errors import HarnessError
from ..layout import NAME, ROOT
from ..waiting import polls

MAINTENANCE = "postgres"
"""Advisory locks are per database: all processes of the harness take theirs in this one."""

MARK = 1_070_777
"""Our connection limit: high enough to be none, odd enough to be ours. Of all attributes of a
database it is the one that is set by CREATE DATABASE itself, so that no crash can leave an
unmarked one."""

_INVALID = -2  # datconnlimit after an interrupted DROP DATABASE

_RUN_LOCK = 0x61707001  # class of the advisory locks: "app" and a number
_BUILD_LOCK = 0x61707002
_KEEP_LOCK = 0x61707010

OF_A_WORKER = {
    "w": "a worker's",
    "s": "spare",
    "d": "to be dropped",
    "k": "kept",
    "t": "what a wider fixture stored",
}
KINDS = {"g": "golden", "b": "being built", **OF_A_WORKER}
"""The letter after `app_`, and what it stands for."""

_GOLDEN = r"app_g_[0-9a-f]{16}"
_OF_A_RUN = (
    r"app_(?:b_[0-9a-f]{16}_([0-9a-f]{8})_[0-9a-f]{8}"
    rf"|[{''.join(OF_A_WORKER)}]_([0-9a-f]{{8}})_[a-z0-9]+(?:_[0-9]+)?)"
)

_PATIENCE = 120.0  # seconds that a statement of the harness's own may take
_RESUMES = 0.1  # seconds after which psycopg asks whether to wait on, by default


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that does not wait for ever: a server that is stopped never answers."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().wait(_impatient(gen), *args, **kwargs)
        except TimeoutError as error:
            self.pgconn.finish()  # in the middle of an answer: of no use any more
            raise psycopg.OperationalError(str(error)) from None


def _impatient(gen: Any) -> Generator[Any, Any, Any]:
    """The same generator, until our patience is at an end.

    How often psycopg resumes it is counted: a test may stop the clocks.
    """
    waited = 0.0
    try:
        waits_for = next(gen)
        while True:
            ready = yield waits_for
            waited += 0 if ready else _RESUMES
            if waited > _PATIENCE:
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
    given_up: bool
    """Whether somebody began to drop it."""
    template: bool
    """As a golden one is; a test may have made its own one."""
    comment: str

    @property
    def run(self) -> str | None:
        """The run it belongs to; None for a golden one."""
        found = re.fullmatch(_OF_A_RUN, self.name)
        return (found[1] or found[2]) if found else None

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.name[4]

    @property
    def notes(self) -> dict[str, Any]:
        """What a golden one was published with; nothing where somebody wrote another comment."""
        try:
            notes = json.loads(self.comment)
        except ValueError:
            return {}
        return notes if isinstance(notes, dict) else {}

    @property
    def is_of_this_project(self) -> bool:
        """Whether it is a golden one of this project's: several may share a server."""
        return self.notes.get("project") == str(ROOT)


# What a server, a role or the shell may have set otherwise. Each value has one text, wherever it is read.
_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "exit_on_error": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}

_OF_EMBEDDED = {"default_transaction_read_only": "off"}
"""What only a test can have set for our role there. A server that is given says so, and is refused: see guard."""

# Those that this version of Postgres has; and of what somebody has set for our role, nothing that it may
# change, but for the role that it takes, which pg_settings does not show, and that it only reads: see guard.
_SET = """
    SELECT set_config(name, value, false) FROM (
        SELECT * FROM jsonb_each_text(%(wanted)s) AS wanted(name, value)
        WHERE current_setting(name, true) IS NOT NULL
        UNION ALL
        SELECT name, boot_val FROM pg_settings
        WHERE EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = 0)  -- spares the reading of all
          AND source IN ('global', 'user') AND context = 'user'
          AND name <> 'default_transaction_read_only' AND NOT %(wanted)s::jsonb ? name
    ) AS settings
"""

FULL = re.compile("too many (?:clients|connections)|connection slots")
"""What a server says when all its connections are taken."""

_LIMIT = "SELECT current_setting('max_connections') || ' (max_connections)'"
_LIMIT_OF_ROLE = """
    SELECT format('%s that the role %I may have (CONNECTION LIMIT)', rolconnlimit, rolname)
    FROM pg_roles WHERE rolname = session_user
"""

_ROOM = """
    SELECT CASE WHEN rolsuper THEN there ELSE least(
        there - current_setting('superuser_reserved_connections')::int
              - coalesce(current_setting('reserved_connections', true), '0')::int,
        nullif(rolconnlimit, -1)) END
    FROM pg_roles, CAST(current_setting('max_connections') AS int) AS there
    WHERE rolname = session_user
"""

_FEW = 10
"""Connections of a worker that hardly any test needs more than, the harness's own among them."""

_FULL_SECONDS = 10.0  # that a run waits for others to close connections

_opened: weakref.WeakSet[Connection] = weakref.WeakSet()
"""This process's connections: one of them can tell who holds all the others."""


def connect(
    environment: Environment, database: str = MAINTENANCE, *, patience: float = _FULL_SECONDS
) -> Connection:
    """An autocommit connection to a database of the tests' server.

    Args:
        environment: of this process.
        database: its name.
        patience: seconds to wait for a connection, where all are taken.

    Raises:
        HarnessError: the server can't be reached, or refuses.
    """
    for waited in polls(patience, 0.1):
        try:
            connection = Connection.connect(
                environment.conninfo(database),
                autocommit=True,
                connect_timeout=3,
                application_name=environment.application_name,
                client_encoding="UTF8",  # of SQL_ASCII, psycopg makes bytes
                prepare_threshold=None,  # after each DDL, psycopg would have to forget them
            )
            wanted = _SETTINGS if environment.external_url else {**_SETTINGS, **_OF_EMBEDDED}
            connection.execute(_SET, {"wanted": json.dumps(wanted)})
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
            full = FULL.search(str(error))
            if full and waited < patience:
                continue
            reason = _without_password(str(error).strip(), environment)
            if full:
                reason += f"\nWaited {patience:.0f} s for one. {holders(environment, reason)}"
            # The cause without its traceback: pytest shows arguments there, a password among them.
            raise HarnessError(_cannot_connect(environment, database, reason)) from (
                type(error)(reason)
            )
        _opened.add(connection)
        return connection
    raise AssertionError("the last look returns or raises")


def _cannot_connect(environment: Environment, database: str, reason: str) -> str:
    if environment.external_url is None:
        return (
            f"No connection to {database!r} on the tests' embedded server in {environment.home}:\n{reason}\n"
            f"If it does so again, let `python -m {NAME} clean` remove that server."
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


def holders(environment: Environment, said: str) -> str:
    """How many connections there may be, and who holds them, as far as that can be seen.

    Args:
        environment: of this process.
        said: what the server said when it let nobody in.
    """
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
            of_role = "too many connections for role" in said
            limit = connection.execute(_LIMIT_OF_ROLE if of_role else _LIMIT).fetchone()
            assert limit is not None
            return f"All {limit[0]} are held:\n" + "\n".join(r[0] for r in rows)
    if environment.external_url is None:
        from ..servers.postgres import EmbeddedServer

        return EmbeddedServer(environment.home).holders()
    return (
        "Who holds them, a superuser can see, for whom the last ones are reserved:\n"
        "  SELECT pid, usename, application_name, datname, state FROM pg_stat_activity"
    )


def few_connections(connection: Connection) -> str:
    """Of a server on which tests may soon find no connection left, a line for the header."""
    row = connection.execute(_ROOM).fetchone()
    assert row is not None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if row[0] >= _FEW * workers:
        return ""
    return (
        f"connections: {row[0]} at once are all that {connection.info.user} may have, and workers are {workers}: "
        "a test that finds none left fails"
    )


def tells_of_damage(error: psycopg.Error) -> bool:
    """Whether the server found its own files, those of a database, not as they should be."""
    return (error.sqlstate or "")[:2] in ("XX", "58")


def ours(connection: Connection) -> list[Database]:
    """All databases of the harness on this server that belong to our role, the oldest first."""
    rows = connection.execute(
        """
        SELECT datname, oid, datistemplate AND NOT datallowconn,
               datconnlimit = %(invalid)s OR NOT datistemplate AND NOT datallowconn,
               datistemplate, coalesce(shobj_description(oid, 'pg_database'), '')
        FROM pg_database
        WHERE datname ~ %(pattern)s
          AND pg_get_userbyid(datdba) = current_user
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
    if template == "template0":  # copies get them from there, unless a migration has set others
        configure(connection, name, settings_of_the_server(connection), of_all=True)
    inherit(connection, name, template)
    configure(connection, name, dict(connection.execute(_OF_OUR_ROLE).fetchall()))


# What is granted on a database, and set for it or for roles in it. Values of Postgres' own lists of names are
# quoted already; extensions may define no others (variable_is_guc_list_quote, in pg_dump/dumputils.c).
_BESIDE = """
    SELECT line FROM pg_database d, CAST(%(name)s AS name) AS copy, LATERAL (
        SELECT 1, format('REVOKE ALL ON DATABASE %%I FROM PUBLIC', copy) WHERE datacl IS NOT NULL
        UNION ALL SELECT 2, format('GRANT %%s ON DATABASE %%I TO %%s', privilege_type, copy,
                                   CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
        FROM aclexplode(datacl)
        UNION ALL SELECT CASE setrole WHEN 0 THEN 1000 ELSE 2000 END + n, format(
            '%%s DATABASE %%I SET %%I TO %%s',
            coalesce('SET LOCAL ROLE none; ALTER ROLE ' || nullif(setrole, 0)::regrole || ' IN', 'ALTER'), copy,
            of[1], CASE WHEN of[1] ~ '^(search_path|(local|session)_preload_libraries|temp_tablespaces)$'
                        THEN of[2] ELSE quote_literal(of[2]) END)
        FROM pg_db_role_setting, unnest(setconfig) WITH ORDINALITY AS _ (setting, n),
             regexp_match(setting, '^([^=]*)=(.*)') AS of
        WHERE setdatabase = d.oid
    ) AS beside (place, line)
    WHERE datname = %(template)s AND d.oid >= 16384  -- not what initdb grants on template0
    ORDER BY place
"""


def inherit(connection: psycopg.Connection[Any], name: str, template: str) -> None:
    """Give a copy of a database what CREATE DATABASE does not: what a migration, say, set for it."""
    for (line,) in connection.execute(_BESIDE, {"name": name, "template": template}).fetchall():
        connection.execute(line)


_MAY_BE_SET = (
    "(context = 'user' OR context = 'superuser' AND current_setting('is_superuser')::bool)"
)

# What somebody has set for our role, or for every role, and what it is otherwise.
_OF_OUR_ROLE: LiteralString = f"""
    SELECT name, boot_val FROM pg_settings WHERE {_MAY_BE_SET} AND name IN (
        SELECT split_part(setting, '=', 1) FROM pg_db_role_setting, unnest(setconfig) setting
        WHERE setdatabase = 0 AND (setrole = 0 OR pg_get_userbyid(setrole) = session_user))
"""

# What somebody has set for the server, of what changes the meaning of a statement: the categories of these,
# whose names are in the server's language.
_OF_THE_SERVER: LiteralString = f"""
    SELECT name, boot_val FROM pg_settings WHERE {_MAY_BE_SET} AND reset_val <> boot_val AND category IN (
        SELECT category FROM pg_settings
        WHERE name IN ('search_path', 'array_nulls', 'transform_null_equals', 'exit_on_error'))
"""


def settings_of_the_server(connection: Connection) -> dict[str, str]:
    """What a new database is to have set otherwise than the server has it, so that it is like a new server's."""
    return dict(connection.execute(_OF_THE_SERVER).fetchall())


def configure(
    connection: Connection, name: str, settings: dict[str, str], *, of_all: bool = False
) -> None:
    """Let sessions in a database of ours have these settings.

    Args:
        connection: to another database of the server.
        name: of the database.
        settings: names and values.
        of_all: those of each role that has no others; or else those of ours, whatever it has elsewhere.
    """
    role, database = sql.Identifier(connection.info.user), sql.Identifier(name)
    whose = sql.SQL("DATABASE {}" if of_all else "ROLE {1} IN DATABASE {0}").format(database, role)
    alter: list[sql.Composable] = [
        sql.SQL("ALTER {} SET {} = {}").format(
            # Of a list, the value is quoted already: as a string it would be a single name.
            *(whose, sql.Identifier(setting)),
            sql.SQL(value) if setting == "search_path" else sql.Literal(value),
        )
        for setting, value in settings.items()
    ]
    if alter and not of_all:  # one's own settings one may change, but not from within another role
        alter.insert(0, sql.SQL("SET LOCAL ROLE none"))
    if alter:
        connection.execute(sql.SQL("; ").join(alter))


def drop(connection: Connection, databases: Iterable[Database], timeout: float = 5) -> None:
    """Drop databases that `ours` returned: all that can be.

    Raises:
        HarnessError: somebody else is connected and can't be disconnected within `timeout` seconds;
            names them.
    """
    problems = []
    for database in databases:
        name = sql.Identifier(database.name)
        if database.template and not database.given_up:
            connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
        try:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        except (psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege):
            # A superuser's session, or one of the server's own, which it ends for any owner.
            try:
                let_go(connection, database.name)
                disconnect(connection, database.name, timeout)
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
            except psycopg.errors.ObjectInUse:
                who = sessions(connection, database.name)
                problems.append(_occupied(connection, database.name, who))
            except (HarnessError, psycopg.OperationalError) as error:
                problems.append(str(error))
    if problems:
        raise HarnessError("\n".join(problems))


def as_ours(name: str) -> sql.Composed:
    """SQL that gives a database of this worker what it is known by, whatever a test made of it."""
    again = "ALTER DATABASE {0} CONNECTION LIMIT {1}; ALTER DATABASE {0} OWNER TO CURRENT_USER"
    return sql.SQL(again).format(sql.Identifier(name), sql.Literal(MARK))


def drop_named(connection: Connection, name: str) -> None:
    """Drop the database of this name, if it is one of ours.

    Raises:
        HarnessError: see `drop()`.
    """
    drop(connection, [d for d in ours(connection) if d.name == name])


def let_go(connection: Connection, name: str) -> list[str]:
    """End what keeps a database from being dropped though nobody is connected to it.

    Args:
        connection: to another database of the server.
        name: of one of ours, or of none.

    Returns:
        A line for each prepared transaction, which is rolled back, and for each subscription.
    """
    found = connection.execute(
        """
        SELECT 'prepared transaction', gid FROM pg_prepared_xacts WHERE database = %(name)s
        UNION ALL SELECT 'subscription', subname
        FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = %(name)s
        """,
        {"name": name},
    ).fetchall()
    if found:
        info = connection.info  # its dsn is without the password
        conninfo = make_conninfo(info.dsn, dbname=name, password=info.password or None)
        with Connection.connect(conninfo, autocommit=True) as inside:
            for kind, holder in found:
                for end in _ENDS[kind]:
                    quoted = sql.Literal(holder) if kind.startswith("p") else sql.Identifier(holder)
                    inside.execute(sql.SQL(end).format(quoted))
    return [f"  the {kind} {holder}" for kind, holder in found]


_ENDS: dict[str, Sequence[LiteralString]] = {
    "prepared transaction": ["ROLLBACK PREPARED {}"],
    "subscription": [
        "ALTER SUBSCRIPTION {} DISABLE",
        "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",  # of another server's, perhaps
        "DROP SUBSCRIPTION {}",
    ],
}


def disconnect(connection: Connection, name: str, timeout: float = 5) -> None:
    """End all sessions of a database of ours and wait until they are gone.

    Raises:
        HarnessError: there is one left after `timeout` seconds; names it.
    """
    terminate(connection, name, lambda: sessions(connection, name), timeout)


def terminate(
    connection: Connection, name: str, left: Callable[[], Iterable[int]], timeout: float = 5
) -> None:
    """End sessions of a database of ours and wait until they are gone.

    One that we may not end, such as a superuser's, may leave by itself.

    Args:
        connection: to another database of the server.
        name: of the database, for the message.
        left: the processes of those that are left.
        timeout: seconds to wait for them.

    Raises:
        HarnessError: there is one left after that; names it.
    """
    pids: list[int] = []
    for _ in polls(timeout):
        pids = list(left())
        if not pids:
            return
        for pid in pids:
            with suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    raise HarnessError(_occupied(connection, name, pids))


def sessions(connection: Connection, name: str) -> list[int]:
    """The processes of a database's sessions.

    The server's own, such as those of autovacuum, have no user, and give way by themselves.
    """
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL", (name,)
    )
    return [row[0] for row in rows]


def has_others(connection: Connection, environment: Environment) -> bool:
    """Whether anybody else is connected to the server, another worker of this run included."""
    row = connection.execute(
        """
        SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend'
                       AND datname IS DISTINCT FROM %s AND application_name <> %s)
        """,
        (environment.database, environment.application_name),
    ).fetchone()
    return row == (True,)


def _occupied(connection: Connection, name: str, processes: list[int]) -> str:
    who = "\n".join(describe_sessions(connection, processes))
    return f"{name} is to be dropped, renamed or cloned, but these sessions of it can't be ended. Close them:\n{who}"


def describe_sessions(connection: Connection, processes: Iterable[int]) -> list[str]:
    """Sessions, a line each: process, program, state, last query, and for whom it waits.

    Args:
        connection: to any database of the server.
        processes: theirs.
    """
    rows = connection.execute(
        """
        SELECT format('  process %%s, %%s, %%s: %%s%%s', pid, coalesce(nullif(application_name, ''), 'unnamed'),
                      coalesce(state, backend_type, 'of ' || usename)
                      || CASE WHEN backend_xid IS NOT NULL THEN ', not committed' ELSE '' END,
                      left(regexp_replace(query, '\\s+', ' ', 'g'), 200),
                      '\n    waits for process ' || nullif(array_to_string(pg_blocking_pids(pid), ', '), ''))
        FROM pg_stat_activity
        WHERE pid = ANY(%s) ORDER BY pid
        """,
        (list(processes),),
    ).fetchall()
    return [row[0] for row in rows]


def compact(connection: Connection) -> None:
    """Make a database that is complete cheap to copy, and to put back.

    Rewritten, tables have no dead rows, all pages but the last are full, and the two files are gone
    that speed up later writes and vacuums: a fifth of what a copy takes. And what a test adds goes to
    the last page or behind it, where it is found again without reading the rest.
    """
    connection.execute("VACUUM (FREEZE, ANALYZE)")
    # A large index of an extension, such as one over vectors, takes too long to be made anew.
    row = connection.execute(
        """
        SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class c
        WHERE c.relkind IN ('r', 'm') AND NOT c.relisshared AND pg_has_role(c.relowner, 'usage')
          AND (pg_relation_size(c.oid) < 1000000 OR NOT EXISTS (
              SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
              WHERE i.indrelid = c.oid AND x.relam >= 16384))
        """
    ).fetchone()
    assert row is not None
    connection.execute(f"VACUUM (FULL, FREEZE) {row[0]}")


def hold_run(connection: Connection, run: str) -> None:
    """Hold the run's databases against the sweep, for as long as the connection lives."""
    connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", (_RUN_LOCK, _key(run)))


def try_build_lock(connection: Connection, fingerprint: str) -> bool:
    """Take the right to build a golden database; True if it is ours now."""
    return _try_lock(connection, _BUILD_LOCK, fingerprint)


@contextmanager
def keeping(connection: Connection, run: str) -> Iterator[int]:
    """Let one process of a run at a time keep a database for the user. Gives how many there are."""
    connection.execute("SELECT pg_advisory_lock(%s, %s)", (_KEEP_LOCK, _key(run)))
    try:
        yield sum(d.kind == "k" and d.run == run for d in ours(connection))
    finally:
        _unlock(connection, _KEEP_LOCK, run)


def release_build_lock(connection: Connection, fingerprint: str) -> None:
    """Give that right back."""
    _unlock(connection, _BUILD_LOCK, fingerprint)


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
    """Drop what dead runs left behind, and golden databases that they began to drop.

    The newest databases that were kept for the user stay.

    Returns:
        The names that were dropped, and what is in the way of others.
    """
    found = [d for d in ours(connection) if (d.run != run if d.run else d.given_up)]
    keep = [d for d in found if d.kind == "k"][-kept:] if kept else []
    leftovers, problems = [], []
    for dead in {d.run for d in found}:
        if dead and not _try_lock(connection, _RUN_LOCK, dead):
            continue  # it lives
        mine = [d for d in found if d.run == dead and d not in keep]
        leftovers += mine
        try:
            drop(connection, mine, timeout=0.5)
        except HarnessError as error:  # of no concern to this run
            problems.append(str(error))
        finally:
            if dead:
                _unlock(connection, _RUN_LOCK, dead)
    there = {d.oid for d in ours(connection)} if problems else set()
    return [d.name for d in leftovers if d.oid not in there], problems


def _try_lock(connection: Connection, class_: int, name: str) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (class_, _key(name))).fetchone()
    return row == (True,)


def _unlock(connection: Connection, class_: int, name: str) -> None:
    connection.execute("SELECT pg_advisory_unlock(%s, %s)", (class_, _key(name)))


def _key(name: str) -> int:
    """The first 32 bits of a hexadecimal name, as Postgres' signed integer."""
    return int.from_bytes(bytes.fromhex(name[:8]), signed=True)
