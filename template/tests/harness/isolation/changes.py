"""What changed in a database, by Postgres' own counters: whoever changed it, by whatever driver.

Postgres counts the rows that were inserted, updated and deleted in each table, its own catalogs
included. The counts of a session are complete when it has ended, or was told to flush them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from psycopg import Cursor

from ..golden.databases import Connection

_OURS = 16384
"""The first oid that Postgres does not use itself: below are its catalogs."""

# What was counted of the whole database and of no table of it was counted of its catalogs.
_TABLES = f"""
    WITH own AS MATERIALIZED (
        SELECT oid, relkind, pg_stat_get_tuples_inserted(oid) AS inserted,
               pg_stat_get_tuples_updated(oid) + pg_stat_get_tuples_deleted(oid) AS modified
        FROM pg_class WHERE oid >= {_OURS} AND relkind IN ('r', 'm', 't'))
    SELECT oid::bigint, inserted, modified FROM own WHERE relkind <> 't' AND inserted + modified > 0
    UNION ALL
    SELECT 0, pg_stat_get_db_tuples_inserted({{oid}}) + pg_stat_get_db_tuples_updated({{oid}})
              + pg_stat_get_db_tuples_deleted({{oid}})
              - coalesce((SELECT sum(inserted + modified)::bigint FROM own), 0), 0
"""

# ANALYZE changes the statistics of the planner, and nothing that a query could see.
_CATALOGS = f"""
    SELECT coalesce(sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid)
                        + pg_stat_get_tuples_deleted(oid)), 0)::bigint
    FROM pg_class
    WHERE relkind IN ('r', 't') AND oid < {_OURS} AND NOT relisshared AND oid NOT IN (
        SELECT unnest(ARRAY[oid, reltoastrelid]) FROM pg_class
        WHERE oid IN ('pg_statistic'::regclass, 'pg_statistic_ext_data'::regclass))
"""

# Of the sessions with a user: the others are the server's own.
_SESSIONS = (
    "SELECT pid, state_change::text FROM pg_stat_get_activity(NULL) "
    "WHERE datid = {oid} AND usesysid IS NOT NULL AND pid <> pg_backend_pid()"
)

STATE = """
    concat_ws(' ', extract(epoch FROM pg_stat_get_db_stat_reset_time(d.oid)), d.xmin, d.datconnlimit, (
        SELECT string_agg(concat_ws(' ', setdatabase, setrole, setconfig), ' ' ORDER BY setdatabase, setrole)
        FROM pg_db_role_setting WHERE setdatabase IN (0, d.oid)), (
        SELECT string_agg(version::text, ' ' ORDER BY version::text) FROM (
            SELECT xmin::text FROM pg_shdescription WHERE (objoid, classoid) = (d.oid, 'pg_database'::regclass)
            UNION ALL SELECT xmin::text FROM pg_shseclabel WHERE (objoid, classoid) = (d.oid, 'pg_database'::regclass)
        ) of_it (version))),
    pg_stat_get_tuples_inserted('pg_authid'::regclass) + pg_stat_get_tuples_deleted('pg_authid'::regclass)
    + pg_stat_get_tuples_inserted('pg_auth_members'::regclass)
    + pg_stat_get_tuples_inserted('pg_tablespace'::regclass) + pg_stat_get_tuples_inserted('pg_database'::regclass)
"""
"""What else there is of a database `d`, as a text to compare; and a number that changes when
something is made for the whole server."""

_HOLDS = """
    ARRAY(SELECT gid FROM pg_prepared_xact() p (transaction, gid, prepared, ownerid, dbid) WHERE dbid = d.oid
          UNION ALL SELECT subname FROM pg_subscription WHERE subdbid = d.oid)
"""


@dataclass(frozen=True)
class Sequence:
    """A sequence, and where it stands."""

    oid: int
    name: str
    last: int
    called: bool

    @property
    def set_back(self) -> str:
        """SQL that lets it stand there again."""
        return f"setval({self.oid}::regclass, {self.last}, {self.called})"


@dataclass(frozen=True)
class Reading:
    """What Postgres says at one moment.

    Attributes:
        sessions: processes of the sessions of others, and when each was last active, where that is known.
        tables: rows ever inserted, and ever updated or deleted, by table.
        catalogs: the same for all catalogs, those of the planner's statistics included, in one number.
        state: of the database, see `STATE`.
        shared: changes when something is made for the whole server.
        holds: what keeps the database from being dropped, see `databases.let_go()`.
        sequences: those that do not stand where they should.
    """

    sessions: Mapping[int, str | None]
    tables: Mapping[int, tuple[int, int]]
    catalogs: int
    state: str
    shared: int
    holds: Collection[str]
    sequences: frozenset[int]

    def is_as(self, other: Reading) -> bool:
        """Whether nothing changed in the database between the two."""
        return replace(self, sessions={}, shared=0) == replace(other, sessions={}, shared=0)


@dataclass(frozen=True)
class Fresh:
    """A database in which nothing happened yet.

    Attributes:
        oid: its own.
        state: see `STATE`.
        shared: see `Reading`.
        since: the last transaction of the server before it was there.
    """

    oid: int
    state: str
    shared: int
    since: int


def prepare(connection: Connection, oid: int, sequences: Iterable[Sequence]) -> None:
    """Let a connection to the database answer `READ` quickly.

    Args:
        connection: to the database, by which nothing else is prepared.
        oid: the database's.
        sequences: where they stand.
    """
    moved = " UNION ALL ".join(
        f"SELECT {s.oid}::bigint FROM {s.name} WHERE (last_value, is_called) <> ({s.last}, {s.called})"
        for s in sequences
    )
    connection.execute(
        "DEALLOCATE ALL; SET stats_fetch_consistency = none; "
        f"PREPARE sessions AS {_SESSIONS.format(oid=oid)}; "
        f"PREPARE tables AS {_TABLES.format(oid=oid)}; "
        f"PREPARE sequences AS {moved or 'SELECT 0::bigint LIMIT 0'}; "
        f"PREPARE state AS SELECT {STATE}, {_HOLDS} FROM pg_database d WHERE oid = {oid}"
    )


# The sessions first: what of them has ended by then has been counted.
READ = "EXECUTE sessions; EXECUTE tables; EXECUTE sequences; EXECUTE state"
"""What `reading` wants the results of, on a prepared connection."""


def reading(cursor: Cursor[Any]) -> Reading:
    """What Postgres has counted, from the first results of a cursor. The next one is current then."""
    sessions = dict(cursor.fetchall())
    cursor.nextset()
    counted = {relation: (inserted, modified) for relation, inserted, modified in cursor.fetchall()}
    catalogs, _ = counted.pop(0)
    cursor.nextset()
    moved = frozenset(relation for (relation,) in cursor.fetchall())
    cursor.nextset()
    state, shared, holds = cursor.fetchall()[0]
    cursor.nextset()
    return Reading(sessions, counted, catalogs, state, shared, holds, moved)


def read_catalogs(connection: Connection) -> int:
    """Rows ever inserted, updated or deleted in catalogs, but for the planner's statistics."""
    row = connection.execute(_CATALOGS).fetchone()
    assert row is not None
    return int(row[0])


def sessions(connection: Connection, oid: int) -> dict[int, str | None]:
    """The sessions of a database alone, as in a `Reading`."""
    return dict(connection.execute(_SESSIONS.format(oid=oid)).fetchall())


def read_sequences(connection: Connection) -> list[Sequence]:
    """Where each sequence of the database stands."""
    found = connection.execute(
        """
        SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND has_table_privilege(c.oid, 'SELECT')
        ORDER BY c.oid
        """
    ).fetchall()
    if not found:
        return []
    stand = " UNION ALL ".join(
        f"SELECT {oid}, last_value, is_called FROM {name}" for oid, name in found
    )
    names = dict(found)
    return [Sequence(oid, names[oid], *rest) for oid, *rest in connection.execute(stand)]


def on_the_server(connection: Connection) -> set[str]:
    """What belongs to the whole server, and is not the harness's."""
    row = connection.execute(
        """
        SELECT ARRAY(SELECT 'the role ' || rolname FROM pg_roles
                     UNION ALL SELECT format('the member %s of the role %s', member::regrole, roleid::regrole)
                     FROM pg_auth_members
                     UNION ALL SELECT 'the tablespace ' || spcname FROM pg_tablespace
                     UNION ALL SELECT 'the database ' || datname FROM pg_database
                     WHERE datname !~ '^app_[a-z]_[0-9a-f]{8}')
        """
    ).fetchone()
    assert row is not None
    return set(row[0])
