"""After a test, the database holds what it held before: what changed is put back, and compared.

Two round trips: one reads what changed (`changes.py`), one puts it back (`content.py`), compares it
and lets Postgres count it, so that the counters' new values are known without asking. What else can
change in a database, and what is not understood, is not mended: the database is to be replaced.

A fixture of a wider scope than the test moves what is put back to: a level on those below it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import psycopg

from ..golden.databases import Connection
from . import changes
from .changes import Fresh, Reading, Sequence
from .content import Table

_VACUUM = 500
"""Dead rows of a table from which it is vacuumed: a scan reads them, too."""

_TOO_MANY = 20_000
"""Dead rows of a large table from which its database is replaced: to vacuum its indexes takes longer."""


@dataclass
class Level:
    """What a database is put back to.

    Attributes:
        tables: by oid.
        sequences: by oid.
        own: tables that differ from those of the level below.
        template: a database that holds all this, where more than rows differs.
    """

    tables: Mapping[int, Table]
    sequences: Mapping[int, Sequence]
    own: Collection[int] = ()
    template: str | None = None


class PutBack:
    """Knows what one database should hold, and what Postgres has counted when it did.

    Args:
        connect: opens a connection to the database, as its owner or a superuser.
        fresh: the database, in which nothing happened yet.
        levels: the golden content, then what wider fixtures stored.
    """

    def __init__(
        self, connect: Callable[[], Connection], fresh: Fresh, levels: Sequence_[Level]
    ) -> None:
        self.rewritten = False
        """Whether rows were stored anew that were there from the beginning."""
        self._connect = connect
        self.oid = fresh.oid
        """The database's."""
        self._state = fresh.state
        self._since = fresh.since
        self._levels = levels
        self._opened: Connection | None = None
        self._tables: Mapping[int, tuple[int, int]] = {}
        self._catalogs = 0
        self._dead: dict[int, int] = {}

    @property
    def level(self) -> Level:
        """What is put back to at present."""
        return self._levels[-1]

    @property
    def connection(self) -> Connection:
        """The harness's own to this database, opened when it is first needed."""
        if self._opened is None:
            self._opened = self._connect()
            self._opened.execute("SET lock_timeout = '2s'; SET statement_timeout = 0")
            if self._superuser:
                self._opened.execute("SET session_replication_role = replica")
            self._prepare()
        return self._opened

    @property
    def process(self) -> int | None:
        """The server's process of that connection."""
        return self._opened.info.backend_pid if self._opened is not None else None

    def close(self) -> None:
        """Leave the database."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _superuser(self) -> bool:
        assert self._opened is not None
        return is_superuser(self._opened)

    def _prepare(self) -> None:
        changes.prepare(self.connection, self.level.sequences.values())

    def read(self) -> Reading:
        """What Postgres has counted by now."""
        return changes.read(self.connection, self.oid)

    def accept(self, now: Reading) -> None:
        """From now on, what is there is put back to: a level was added that says what that is."""
        self._tables, self._catalogs = now.tables, now.catalogs
        row = self.connection.execute(
            "SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1) % 4294967296"
        ).fetchone()
        assert row is not None
        self._since = row[0]
        self._prepare()

    def differing(self) -> set[int]:
        """Small tables that do not hold what they should: found by reading, not by counters."""
        small = [table for table in self.level.tables.values() if table.content is not None]
        if not small:
            return set()
        cursor = self.connection.execute("; ".join(table.measure for table in small))
        found = set()
        for table in small:
            if cursor.fetchall()[0] != table.content:
                found.add(table.oid)
            cursor.nextset()
        return found

    def changed(self, now: Reading) -> set[int] | None:
        """Tables in which rows were added, changed or deleted; None where it was more than that."""
        if now.catalogs != self._catalogs or now.state != self._state or now.prepared:
            return None
        found = set()
        for oid in now.tables.keys() | self._tables.keys():
            before, after = self._tables.get(oid, (0, 0)), now.tables.get(oid, (0, 0))
            if after[0] < before[0] or after[1] < before[1]:
                return None  # somebody set the counters back
            if after != before:
                found.add(oid)
        return found

    def is_unchanged(self, now: Reading) -> bool:
        """Whether nothing changed since the last time."""
        return self.changed(now) == set() and not now.sequences

    def put_back(self, now: Reading, rewrite: Collection[int] = ()) -> bool:
        """Put back what changed since the last time.

        Args:
            now: what Postgres has counted, with no session of a test open any more.
            rewrite: tables to be rewritten whether or not they changed.

        Returns:
            Whether the database holds again what it should. If not, replace it.
        """
        changed = self.changed(now)
        if changed is None:
            return False
        if not (changed or rewrite or now.sequences):
            return True
        try:
            return self._put_back(now, changed, rewrite)
        except psycopg.Error:
            return False

    def _put_back(self, now: Reading, changed: set[int], rewrite: Collection[int]) -> bool:
        added, rewritten = [], []
        for oid in self._in_order(changed.union(rewrite)):
            table = self.level.tables.get(oid)
            if table is None or table.reacts or (table.guarded and not self._superuser):
                return False
            before, after = self._tables.get(oid, (0, 0)), now.tables.get(oid, (0, 0))
            if oid not in rewrite and after[1] == before[1]:
                added.append(table)
            elif table.rows is not None and self._superuser:
                rewritten.append(table)
            else:
                return False
        sequences = [self.level.sequences[oid] for oid in now.sequences]
        statements = [table.delete_added(self._since) for table in added]
        for table in rewritten:
            statements.append(f"DELETE FROM ONLY {table.name}")
            statements += [table.insert] if table.rows else []
        if sequences:
            statements.append(f"SELECT {', '.join(s.set_back for s in sequences)}")
        compared = [table for table in (*added, *rewritten) if table.content is not None]
        statements += [table.measure for table in compared]
        statements += [
            "SELECT pg_current_xact_id_if_assigned()::text::bigint % 4294967296",
            "SELECT pg_stat_force_next_flush()",
        ]
        cursor = self.connection.execute("; ".join(statements))
        as_before = True
        counted = dict(now.tables)
        for table in added:
            inserted, modified = counted[table.oid]
            gone = cursor.rowcount
            counted[table.oid] = inserted, modified + gone
            if table.content is None:
                # All that was inserted is gone, or part of it lies where nobody looked.
                as_before &= gone == inserted - self._tables.get(table.oid, (0, 0))[0]
            cursor.nextset()
        for table in rewritten:
            inserted, modified = counted.get(table.oid, (0, 0))
            modified += cursor.rowcount
            cursor.nextset()
            if table.rows:
                inserted += cursor.rowcount
                cursor.nextset()
            counted[table.oid] = inserted, modified
        if sequences:
            cursor.nextset()
        for table in compared:
            as_before &= cursor.fetchall()[0] == table.content
            cursor.nextset()
        if rewritten:
            self.rewritten = True
            self._since = cursor.fetchall()[0][0]
        if as_before:
            as_before = self._clear_away(changed.union(rewrite), counted)
        self._tables = counted
        return as_before

    def rewrite(self, oids: Collection[int]) -> bool:
        """Store the rows of these tables, and where sequences stand: the database is a clone of less."""
        self._prepare()
        return self.put_back(self.read(), oids)

    def _in_order(self, oids: Iterable[int]) -> list[int]:
        """Children before their parents: foreign keys count where the harness is no superuser."""
        if self._superuser:
            return list(oids)
        wanted = set(oids)
        tables = self.level.tables
        graph = {o: [p for p in tables[o].parents if p in wanted] for o in wanted if o in tables}
        try:
            parents_first = list(TopologicalSorter(graph).static_order())
        except CycleError:
            return [*wanted, 0]  # no table has this number: it can't be put back
        return [*(wanted - graph.keys()), *reversed(parents_first)]

    def _clear_away(self, oids: Iterable[int], counted: Mapping[int, tuple[int, int]]) -> bool:
        """Keep dead rows few. False where that takes longer than to replace the database."""
        for oid in oids:
            dead = sum(counted[oid]) - self._dead.get(oid, 0)
            if dead < _VACUUM:
                continue
            table = self.level.tables[oid]
            if table.content is None:
                if dead >= _TOO_MANY:
                    return False
                continue
            self.connection.execute(f"VACUUM (INDEX_CLEANUP on, TRUNCATE false) {table.name}")
            self._dead[oid] = sum(counted[oid])
        return True


def is_superuser(connection: Connection) -> bool:
    """Whether the role of a connection is one."""
    return connection.info.parameter_status("is_superuser") == "on"
