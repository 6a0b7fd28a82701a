"""The rows that a database is put back to, and the statements that put them back.

Rows that a test added are deleted: what was written after a given transaction. A small table in
which rows were changed or deleted is emptied, and gets its rows again, in their order, from a copy
in memory. A table for which neither is possible says so: its database is replaced.

With a superuser's rights, triggers and foreign keys rest meanwhile. Without, only added rows are
taken back, from tables that nothing reacts to, in the order of their foreign keys.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..golden.databases import Connection

_SMALL = 256 * 1024
"""Bytes of a table up to which its rows are kept in memory."""

_PAGE = 8192

# What reacts to rows although `session_replication_role` is replica (triggers that fire always, or
# just then, and rules), or reacts as soon as it is not (other triggers, row-level security). Foreign
# keys are internal triggers.
_TABLES = """
    SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid),
           ARRAY(SELECT quote_ident(attname) FROM pg_attribute
                 WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                 ORDER BY attnum),
           c.relhasrules OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgenabled IN ('A', 'R')),
           c.relforcerowsecurity
           OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled <> 'D'),
           ARRAY(SELECT confrelid::bigint FROM pg_constraint
                 WHERE conrelid = c.oid AND contype = 'f' AND confrelid <> c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND c.oid >= 16384 {only}
      AND has_table_privilege(c.oid, 'SELECT')
    ORDER BY c.oid
"""


@dataclass(frozen=True)
class Table:
    """A table as it should be.

    Attributes:
        oid: of the table.
        name: with its schema, quoted.
        pages: that it takes; rows that are added later lie in the last of these, or behind.
        reacts: to rows, whatever the harness does.
        guarded: reacts to rows where the harness has no superuser's rights.
        parents: tables to which it has foreign keys.
        columns: those that can be stored, quoted.
        content: number of rows and their hash; None for a large table.
        rows: as they stand in an INSERT; None for a large table.
    """

    oid: int
    name: str
    pages: int
    reacts: bool
    guarded: bool
    parents: Collection[int]
    columns: str
    content: tuple[int, str] | None = None
    rows: str | None = None

    @property
    def measure(self) -> str:
        """SQL for `content`. The order of rows does not matter."""
        return f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ONLY {self.name} t"

    def delete_added(self, since: int) -> str:
        """SQL that deletes what was written by transactions after this one."""
        # Every page before the last one was full when the table was measured.
        begin = f"ctid >= '({max(self.pages - 1, 0)},0)' AND " if self.rows is None else ""
        return f"DELETE FROM ONLY {self.name} WHERE {begin}xmin::text::bigint > {since}"

    @property
    def insert(self) -> str:
        """SQL that stores the rows."""
        return (
            f"INSERT INTO {self.name} ({self.columns}) OVERRIDING SYSTEM VALUE VALUES {self.rows}"
        )


def read(connection: Connection, only: Collection[int] | None = None) -> dict[int, Table]:
    """The tables of a database with their present content, by oid.

    Args:
        connection: to the database, as its owner or a superuser.
        only: read these alone.
    """
    where = "" if only is None else f"AND c.oid = ANY(ARRAY[{', '.join(map(str, only))}]::oid[])"
    found = {}
    for oid, name, size, columns, reacts, guarded, parents in connection.execute(
        _TABLES.format(only=where)
    ):
        pages = -(-size // _PAGE)
        found[oid] = Table(oid, name, pages, reacts, guarded, set(parents), ", ".join(columns))
        if size <= _SMALL and columns:
            literals = " || ',' || ".join(f"quote_nullable({column}::text)" for column in columns)
            found[oid] = replace(found[oid], rows=literals)
    small = [table for table in found.values() if table.rows is not None]
    if small:
        cursor = connection.execute(
            "; ".join(
                f"{table.measure}; SELECT coalesce(string_agg('(' || {table.rows} || ')', ','), '') "
                f"FROM ONLY {table.name}"
                for table in small
            )
        )
        for table in small:
            content = cursor.fetchall()[0]
            cursor.nextset()
            found[table.oid] = replace(table, content=content, rows=cursor.fetchall()[0][0])
            cursor.nextset()
    return found


def has_functions_that_remember(connection: Connection) -> bool:
    """Whether a function of the database changes its session: settings, locks, listeners and the like."""
    row = connection.execute(
        r"""
        SELECT EXISTS (
            SELECT FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
            WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p') AND l.lanname NOT IN ('c', 'internal')
              AND pg_get_functiondef(p.oid)
                  ~* '\y(set_config|execute|perform|advisory|dblink|listen|temp|temporary|prepare|declare\s+\S+\s+cursor)'
              OR p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal', 'sql', 'plpgsql'))
        """
    ).fetchone()
    return row == (True,)
