"""After a test, the database holds what it held before: what changed is put back, and compared.

Two round trips: one reads what changed (`changes.py`), one puts it back (`content.py`), compares it
and lets Postgres count it, so that the counters' new values are known without asking. Tests that add
rows to the same tables, one after the other, need only one: what the last one needed is done along
with the reading. What else can change in a database, and what is not understood, is not mended: the
database is to be replaced.

A fixture of a wider scope than the test moves what is put back to: a level on those below it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Set
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import psycopg

from ..golden.databases import Connection
from . import changes, content
from .changes import Fresh, Reading, Sequence
from .content import Marks, Table
from .statements import Names

Counts = Mapping[int, tuple[int, int]]
"""Rows ever inserted, and ever updated or deleted, by table."""

_VACUUM = 500
"""Dead rows of a table from which it is vacuumed: a scan reads them, too."""

_TOO_MANY = 20_000
"""Dead rows of a large table from which its database is replaced: to vacuum its indexes takes longer."""


@dataclass(eq=False)
class Level:
    """What a database is put back to.

    Attributes:
        tables: by oid.
        sequences: by oid.
        names: by which a statement reaches what a session remembers.
        marks: reads those of its large tables and catalogs, which few runs want.
        own: tables that differ from those of the level below, or of the template.
        template: a database that holds all this, where more than rows differs.
        fixture: whose level it is, for messages.
    """

    tables: Mapping[int, Table]
    sequences: Mapping[int, Sequence]
    names: Names
    marks: Callable[[], Marks]
    own: Collection[int] = ()
    template: str | None = None
    fixture: str = ""

    def take_out(self, gone: Level, below: Level) -> bool:
        """Become what this would be, had a level between it and `below` not been there.

        Returns:
            False if that can't be told.
        """
        tables = dict(self.tables)
        for oid in gone.own:
            without = tables[oid].without(below.tables[oid], gone.tables[oid])
            if without is None:
                return False
            tables[oid] = without
        self.tables = tables
        if self.template is not None:  # it holds that level's rows
            self.own = {*self.own, *gone.own}
        return gone.template is None


@dataclass(frozen=True)
class Plan:
    """What is to be put back.

    Attributes:
        added: tables that lose what transactions after `since` wrote.
        rewritten: tables that are emptied, and get their rows again.
        sequences: that are set back.
        since: the last transaction before the test.
        counted: whether all that was written has been; if not, large tables are to be looked at.
    """

    added: Sequence_[Table]
    rewritten: Sequence_[Table]
    sequences: Sequence_[Sequence]
    since: int
    counted: bool = True

    @property
    def _compared(self) -> list[Table]:
        return [t for t in (*self.added, *self.rewritten) if t.content is not None]

    @property
    def sql(self) -> str:
        """The statements; all, or none. `outcome` wants their results."""
        statements = [table.delete_added(self.since) for table in self.added]
        for table in self.rewritten:
            statements.append(f"DELETE FROM ONLY {table.name}")
            statements.append(table.insert if table.rows else "SELECT LIMIT 0")
        set_back = ", ".join(sequence.set_back for sequence in self.sequences)
        statements.append(f"SELECT {set_back}")
        statements += [table.measure for table in self._compared]
        statements.append("SELECT pg_current_xact_id_if_assigned()::text::bigint % 4294967296")
        statements.append("SELECT pg_stat_force_next_flush()")
        return "; ".join(statements)

    def outcome(self, cursor: psycopg.Cursor[Any], before: Counts, now: Counts) -> Outcome:
        """What came of it.

        Args:
            cursor: at the first result of `sql`.
            before: what was counted before the test.
            now: what was counted before that was run.
        """
        as_before, counted = True, dict(now)
        for table in self.added:
            inserted, modified = now.get(table.oid, (0, 0))
            gone = cursor.rowcount
            counted[table.oid] = inserted, modified + gone
            if table.content is None and self.counted:
                # All that was inserted is gone, or part of it lies where nobody looked.
                as_before &= gone == inserted - before.get(table.oid, (0, 0))[0]
            cursor.nextset()
        for table in self.rewritten:
            inserted, modified = now.get(table.oid, (0, 0))
            modified += cursor.rowcount
            cursor.nextset()
            counted[table.oid] = inserted + cursor.rowcount, modified
            cursor.nextset()
        cursor.nextset()
        for table in self._compared:
            as_before &= cursor.fetchall()[0] == table.content
            cursor.nextset()
        (written_by,) = cursor.fetchall()[0]
        return Outcome(as_before, counted, written_by if self.rewritten else self.since)


@dataclass(frozen=True)
class Outcome:
    """What came of a plan.

    Attributes:
        as_before: the tables hold what they should.
        counted: what Postgres has counted by now.
        since: the last transaction that wrote what is to stay.
    """

    as_before: bool
    counted: Counts
    since: int


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
        self.repeated = False
        """Whether the last reading put back what was changed as well."""
        self._habit: Plan | None = None
        self._connect = connect
        self.oid = fresh.oid
        """The database's."""
        self._state = fresh.state
        self._since = fresh.since
        self._levels = levels
        self._opened: Connection | None = None
        self._tables: Counts = {}
        self._catalogs = 0  # as in a reading
        self._schema = 0  # without what ANALYZE changes
        self._vacuumed: dict[int, int] = {}  # dead rows that are gone

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
        self._habit = None
        changes.prepare(self.connection, self.oid, self.level.sequences.values())

    def read(self, *, repeat: bool = False) -> Reading:
        """What Postgres has counted by now.

        Args:
            repeat: put back what had to be put back the last time, along with it. If that is all
                there was, the reading shows no change, and `repeated` is set.
        """
        self.repeated = False
        if self._habit is None or not repeat:
            return changes.reading(self.connection.execute(changes.READ))
        plan = replace(self._habit, since=self._since)
        try:
            cursor = self.connection.execute(f"{changes.READ}; {plan.sql}")
        except psycopg.Error:
            return self.read()
        now = changes.reading(cursor)
        outcome = plan.outcome(cursor, self._tables, now.tables)
        changed = self.changed(now)
        if (
            changed is None
            or not changed <= {table.oid for table in plan.added}
            or any(now.tables[oid][1] != self._tables.get(oid, (0, 0))[1] for oid in changed)
            or not now.sequences <= {sequence.oid for sequence in plan.sequences}
            or not outcome.as_before
            or not self._accept(outcome, changed)
        ):
            return self.read()
        self.repeated = bool(changed or now.sequences)
        return replace(now, tables=outcome.counted, sequences=frozenset())

    def accept(self, now: Reading) -> None:
        """From now on, what is there is put back to: a level was added that says what that is."""
        self._tables, self._catalogs = now.tables, now.catalogs
        self._schema = changes.read_catalogs(self.connection)
        row = self.connection.execute(
            "SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1) % 4294967296"
        ).fetchone()
        assert row is not None
        self._since = row[0]
        self._prepare()

    def differing(self) -> set[int] | None:
        """Tables that do not hold what they should: found by reading, not by counters.

        Returns:
            None where more than rows differs.
        """
        tables = self.level.tables.values()
        small = [table for table in tables if table.content is not None]
        try:
            found = self._marked_otherwise(tables)
            if not small:
                return found
            cursor = self.connection.execute("; ".join(table.measure for table in small))
        except psycopg.Error:
            return None
        if found is None:
            return None
        for table in small:
            if cursor.fetchall()[0] != table.content:
                found.add(table.oid)
            cursor.nextset()
        return found

    def _marked_otherwise(self, tables: Iterable[Table]) -> set[int] | None:
        """Of these tables, the large ones in which anything was written; None if in a catalog."""
        marks = content.marks(self.connection, tables)
        as_before = self.level.marks()
        found = {oid for oid, mark in marks.items() if as_before.get(oid) != mark}
        return None if 0 in found else found

    def changed(self, now: Reading) -> set[int] | None:
        """Tables in which rows were added, changed or deleted; None where it was more than that."""
        if now.state != self._state or now.holds:
            return None
        if now.catalogs != self._catalogs:
            try:
                if changes.read_catalogs(self.connection) != self._schema:
                    return None
            except psycopg.Error:
                return None
            self._catalogs = now.catalogs
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

    def put_back(
        self, now: Reading, rewrite: Collection[int] = (), *, counted: bool = True
    ) -> bool:
        """Put back what changed since the last time.

        Args:
            now: what Postgres has counted, with no session of a test open any more.
            rewrite: tables to be put back whether or not they changed.
            counted: no session is open that may have written what is not counted yet.

        Returns:
            Whether the database holds again what it should. If not, replace it.
        """
        changed = self.changed(now)
        if changed is None:
            return False
        if not (changed or rewrite or now.sequences):
            return True
        plan = self._plan(now, changed, rewrite)
        if plan is None:
            return False
        plan = replace(plan, counted=counted)
        large = [table for table in plan.added if table.content is None]
        try:
            outcome = plan.outcome(self.connection.execute(plan.sql), self._tables, now.tables)
            if large and not counted and self._marked_otherwise(large) != set():
                return False
            self.rewritten |= bool(plan.rewritten)
            small = not plan.rewritten and all(table.content is not None for table in plan.added)
            self._habit = plan if small else None
            return outcome.as_before and self._accept(outcome, changed.union(rewrite))
        except psycopg.Error:
            return False

    def _plan(self, now: Reading, changed: set[int], rewrite: Collection[int]) -> Plan | None:
        """How to put back what changed; None where that can't be."""
        added, rewritten = [], []
        try:
            oids = self._in_order(changed.union(rewrite))
        except CycleError:
            return None
        for oid in oids:
            table = self.level.tables.get(oid)
            if table is None or table.reacts or (table.guarded and not self._superuser):
                return None
            before, after = self._tables.get(oid, (0, 0)), now.tables.get(oid, (0, 0))
            if after[1] == before[1] and (oid not in rewrite or table.rows is None):
                added.append(table)
            elif table.rows is not None and self._superuser:
                rewritten.append(table)
            else:
                return None
        sequences = [self.level.sequences[oid] for oid in sorted(now.sequences)]
        return Plan(added, rewritten, sequences, self._since)

    def _accept(self, outcome: Outcome, changed: Iterable[int]) -> bool:
        """Go on from what is there now. False where the database had better be replaced."""
        self._tables, self._since = outcome.counted, outcome.since
        return self._clear_away(changed, outcome.counted)

    def rewrite(self, oids: Collection[int]) -> bool:
        """Store the rows of these tables, and where sequences stand: the database is a clone of less."""
        try:
            self._prepare()
            return self.put_back(self.read(), oids)
        except psycopg.Error:
            return False

    def _in_order(self, oids: Set[int]) -> list[int]:
        """Children before their parents: foreign keys count where the harness is no superuser.

        Raises:
            CycleError: tables have foreign keys to each other.
        """
        if self._superuser:
            return list(oids)
        tables = self.level.tables
        graph = {oid: oids & set(tables[oid].parents) if oid in tables else () for oid in oids}
        return list(TopologicalSorter(graph).static_order())[::-1]

    def _clear_away(self, oids: Iterable[int], counted: Counts) -> bool:
        """Keep dead rows few. False where that takes longer than to replace the database."""
        for oid in oids:
            dead = counted[oid][1] - self._vacuumed.get(oid, 0)
            table = self.level.tables[oid]
            if table.content is None and dead >= _TOO_MANY:
                return False
            if table.content is not None and dead >= _VACUUM:
                self.connection.execute(f"VACUUM (INDEX_CLEANUP on, TRUNCATE false) {table.name}")
                self._vacuumed[oid] = counted[oid][1]
        return True


def is_superuser(connection: Connection) -> bool:
    """Whether the role of a connection is one."""
    return connection.info.parameter_status("is_superuser") == "on"
