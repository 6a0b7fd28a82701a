"""The rows that a database is put back to, and the statements that put them back.

Rows that a test added are deleted: what was written after a given transaction. A small table in
which rows were changed or deleted is emptied, and gets its rows again, in their order, from a copy
in memory. A table for which neither is possible says so: its database is replaced.

With a superuser's rights, triggers and foreign keys rest meanwhile. Without, only added rows are
taken back, from tables that nothing reacts to, in the order of their foreign keys.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..golden.databases import Connection
from ..golden.digest import CONTENT

_SMALL = 256 * 1024
"""Bytes of a table up to which its rows are kept in memory, those of long values included."""

_PAGE = 8192

Marks = Mapping[int, tuple[str, str]]
"""Of large tables by oid, and of all catalogs as 0: how many rows there are, and which versions."""

# What reacts to rows although `session_replication_role` is replica (triggers that fire always, or
# just then, and rules), or reacts as soon as it is not (other triggers, row-level security). Foreign
# keys are internal triggers.
_TABLES = """
    SELECT c.oid::bigint, format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid),
           CASE reltoastrelid WHEN 0 THEN 0 ELSE pg_relation_size(reltoastrelid) END,
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
        rows: each as it stands in an INSERT; None for a large table.
    """

    oid: int
    name: str
    pages: int
    reacts: bool
    guarded: bool
    parents: Collection[int]
    columns: str
    content: tuple[int, str] | None = None
    rows: Sequence[str] | None = None

    @property
    def measure(self) -> str:
        """SQL for `content`."""
        return f"SELECT {CONTENT} FROM ONLY {self.name} t"

    def delete_added(self, since: int) -> str:
        """SQL that deletes what was written by transactions after this one."""
        # Every page before the last one was full when the table was measured.
        begin = f"ctid >= '({max(self.pages - 1, 0)},0)' AND " if self.rows is None else ""
        return f"DELETE FROM ONLY {self.name} WHERE {begin}xmin::text::bigint > {since}"

    @functools.cached_property
    def insert(self) -> str:
        """SQL that stores the rows."""
        rows = ",".join(self.rows or ())
        return f"INSERT INTO {self.name} ({self.columns}) OVERRIDING SYSTEM VALUE VALUES {rows}"

    def without(self, before: Table, after: Table) -> Table | None:
        """This content, had another change not been made.

        Args:
            before: the content before that change.
            after: the content after it, and before what led to this one.

        Returns:
            None if that can't be told: what it stored was changed since, or a table is large.
        """
        if self.rows is None or before.rows is None or after.rows is None:
            return None
        old, new, rows = Counter(before.rows), Counter(after.rows), Counter(self.rows)
        if not new - old <= rows:
            return None
        rows = rows - (new - old) + (old - new)
        # The hash of rows is the sum of theirs.
        contents = [table.content or (0, "0") for table in (self, before, after)]
        numbers, hashes = zip(*contents, strict=True)
        content = (
            numbers[0] + numbers[1] - numbers[2],
            str(int(hashes[0]) + int(hashes[1]) - int(hashes[2])),
        )
        return replace(self, rows=list(rows.elements()), content=content)


# The statistics of the planner are ANALYZE's, and nothing that a query could see.
_CATALOGS = """
    SELECT oid::regclass::text FROM pg_class
    WHERE relkind = 'r' AND oid < 16384 AND NOT relisshared AND has_table_privilege(oid, 'SELECT')
      AND oid NOT IN ('pg_statistic'::regclass, 'pg_statistic_ext_data'::regclass)
    ORDER BY oid
"""


def marks(connection: Connection, tables: Iterable[Table]) -> Marks:
    """What tells that rows were written which are not counted yet. Values are not read, all rows are.

    Each version of a row has the number of the transaction that wrote it. A clone has the same.

    Args:
        connection: to the database.
        tables: the large ones of these are looked at; small ones are compared.
    """
    named = {table.oid: [table.name] for table in tables if table.content is None}
    named[0] = [name for (name,) in connection.execute(_CATALOGS)]
    look = "SELECT count(*) AS rows, sum(xmin::text::bigint) AS versions FROM ONLY {}"
    each = (
        f"SELECT {oid}, sum(rows)::text, sum(versions)::text FROM ({' UNION ALL '.join(map(look.format, names))}) _"
        for oid, names in named.items()
    )
    found = connection.execute(" UNION ALL ".join(each)).fetchall()
    return {oid: (rows, versions) for oid, rows, versions in found}


def read(connection: Connection, only: Collection[int] | None = None) -> dict[int, Table]:
    """The tables of a database with their present content, by oid.

    Args:
        connection: to the database, as its owner or a superuser.
        only: read these alone.
    """
    where = "" if only is None else f"AND c.oid = ANY(ARRAY[{', '.join(map(str, only))}]::oid[])"
    found, small = {}, {}
    for oid, name, size, aside, columns, reacts, guarded, parents in connection.execute(
        _TABLES.format(only=where)
    ):
        pages = -(-size // _PAGE)
        found[oid] = Table(oid, name, pages, reacts, guarded, set(parents), ", ".join(columns))
        if size + aside <= _SMALL and columns:
            literals = " || ',' || ".join(f"quote_nullable({column}::text)" for column in columns)
            small[oid] = literals
    if small:
        cursor = connection.execute(
            "; ".join(
                f"{found[oid].measure}; SELECT '(' || {literals} || ')' FROM ONLY {found[oid].name}"
                for oid, literals in small.items()
            )
        )
        for oid in small:
            content = cursor.fetchall()[0]
            cursor.nextset()
            rows = [row for (row,) in cursor.fetchall()]
            found[oid] = replace(found[oid], content=content, rows=rows)
            cursor.nextset()
    return found
