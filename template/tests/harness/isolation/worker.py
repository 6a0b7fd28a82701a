"""The database that one worker's tests see: a clone of the golden one, replaced whenever dirty.

Its name, and with it `DATABASE_URL`, never changes. To replace it, the dirty database is renamed
away and a spare clone is renamed into its place; both take a fraction of a millisecond. The spare
is made, and the dirty one dropped, in the background.

Whether a test touched the database is not asked of the test, nor of a driver: Postgres counts the
sessions of each database.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql

from ..environment import Environment
from ..errors import HarnessError
from ..golden import build as golden
from ..golden import databases
from ..golden.build import Golden, Say
from ..golden.databases import Connection
from ..recipe import Recipe

_GRACE = 0.5  # seconds that a session has to leave after its test; a client closes before its backend ends
_SHOWN = 10  # sessions that a test left, of perhaps hundreds
_SWAPS = 2  # attempts to replace a database; Postgres itself waits for 5 s in each


@dataclass
class Statistics:
    """What isolation did and cost, for the closing line."""

    clones: int = 0
    replaced: int = 0
    seconds: float = 0.0
    leaks: int = 0


class WorkerDatabase:
    """The worker's database: `open()`, then `settle()` after each test, then `close()`."""

    def __init__(
        self, environment: Environment, connection: Connection, recipe: Recipe, say: Say
    ) -> None:
        self.name = environment.database
        self.generation = 0
        self.statistics = Statistics()
        self.golden: Golden
        self.own_sessions = 0
        self._environment = environment
        self._connection = connection
        self._recipe = recipe
        self._say = say
        self._sessions = 0
        self._oid = 0
        self._numbers = itertools.count(1)
        self._spares: deque[Future[str]] = deque()
        # One thread makes and drops: with two, the server has more to do at a time than a machine
        # with two cores does beside a test.
        self._background = ThreadPoolExecutor(1, thread_name_prefix="tests.harness databases")
        self._background_connection: Connection | None = None

    def open(self) -> None:
        """Make the database and verify it.

        A clone that differs from what was published means a golden database that was tampered
        with: it is dropped and built once more.

        Raises:
            HarnessError: the golden database can't be built, or its clones differ again.
        """
        self.golden = golden.ensure(self._environment, self._connection, self._recipe, self._say)
        if wrong := self._clone_and_verify():
            self._drop(self.name)
            golden.discard(self._connection, self.golden, self._recipe, self._say)
            self.golden = golden.ensure(
                self._environment, self._connection, self._recipe, self._say
            )
            if again := self._clone_and_verify():
                raise HarnessError(
                    "A clone of the golden database does not hold what was published, twice: "
                    + "; ".join(again)
                )
            story = f"{self.golden.story.partition(':')[0]}: the one there was damaged ({'; '.join(wrong)})"
            self.golden = Golden(self.golden.name, self.golden.digest, story)
        self.watch()

    def _clone_and_verify(self) -> list[str]:
        try:
            self._clone(self._connection, self.name)
            with databases.connect(self._environment, self.name) as inside:
                return golden.verify(inside, self.golden)
        except HarnessError as error:  # it lets nobody in
            return [str(error)]
        except psycopg.Error as error:
            if not databases.tells_of_damage(error):
                raise
            return [str(error).strip()]

    def _clone(self, connection: Connection, name: str) -> None:
        try:
            golden.clone(connection, self.golden, name)
        except (psycopg.errors.InvalidCatalogName, psycopg.errors.ObjectInUse):
            # Dropped since, by a run with newer sources, or by hand: it comes back. Or entered.
            self.golden = golden.ensure(self._environment, connection, self._recipe, self._say)
            databases.disconnect(connection, self.golden.name)
            golden.clone(connection, self.golden, name)
        self.statistics.clones += 1
        if limits := self._environment.limits:
            # All sessions get them, of whatever driver; they go with the database.
            alter = sql.SQL("ALTER DATABASE {} SET {} = {}")
            connection.execute(
                sql.SQL("; ").join(
                    alter.format(sql.Identifier(name), sql.Identifier(limit), sql.Literal(value))
                    for limit, value in limits.items()
                )
            )

    def prefetch(self, spares: int = 1) -> None:
        """Begin to make spare clones, up to so many in all."""
        while len(self._spares) < spares:
            self._spares.append(self._background.submit(self._make_spare))

    def touched(self) -> tuple[bool, bool]:
        """Whether anybody but the harness connected since the database was new, or took it away.

        And whether it is empty of sessions now.
        """
        # The function, not the view of it: to plan that takes longer than to answer.
        row = self._connection.execute(
            f"""
            SELECT {self.new_sessions},
                   NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) WHERE datid = %(oid)s AND usesysid IS NOT NULL)
            FROM pg_database WHERE oid = %(oid)s AND datname = %(name)s
            """,
            {"oid": self._oid, "name": self.name},
        ).fetchone()
        return row is None or row[0] != 0, row is not None and row[1]

    @property
    def new_sessions(self) -> str:
        """SQL for the number of sessions, not the harness's, since the database was new."""
        return f"pg_stat_get_db_sessions({self._oid}) - {self._sessions + self.own_sessions}"

    def settle(self) -> list[str]:
        """What a test left open, after a moment to leave: a line each."""
        deadline = time.monotonic() + _GRACE
        while left := databases.describe_sessions(self._connection, self.name):
            if time.monotonic() > deadline:
                self.statistics.leaks += len(left)
                more = [f"  … and {len(left) - _SHOWN} more"] if len(left) > _SHOWN else []
                return left[:_SHOWN] + more
            time.sleep(0.001)
        return []

    def replace(self, *, keep: bool = False, empty: bool = False) -> str:
        """Put a fresh clone in the database's place.

        Args:
            keep: leave the old one for the user, instead of dropping it.
            empty: it had no sessions a moment ago.

        Returns:
            The old database's new name.
        """
        begun = time.perf_counter()
        self.prefetch()
        spare = self._spares.popleft()
        old = f"app_{'k' if keep else 'd'}_{self._environment.run}_{self._environment.worker}_{next(self._numbers)}"
        try:
            self._swap(old, spare, empty)
        except HarnessError:
            if not spare.exception():
                self._spares.appendleft(spare)
            raise
        if not keep:
            self._background.submit(self._drop_in_background, old)
        self.generation += 1
        self.statistics.replaced += 1
        self.statistics.seconds += time.perf_counter() - begun
        return old

    def _swap(self, old: str, spare: Future[str], empty: bool) -> None:
        if not empty:
            # First: what a test left may be all the connections there are, and a spare needs one.
            databases.disconnect(self._connection, self.name)
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        aside = rename.format(sql.Identifier(self.name), sql.Identifier(old))
        waits = not spare.done()
        into = rename.format(sql.Identifier(spare.result()), sql.Identifier(self.name))
        for attempt in range(_SWAPS):
            if waits or attempt:  # something may have reconnected
                databases.disconnect(self._connection, self.name)
            try:
                self.watch(aside, into)  # both, or neither
                return
            except psycopg.errors.ObjectInUse:
                continue
            except psycopg.errors.InvalidCatalogName:  # dropped by the test
                self.watch(into)
                return
        raise HarnessError(
            f"{self.name} can't be replaced, because something connects to it again and again:\n"
            + "\n".join(databases.describe_sessions(self._connection, self.name, ours=True))
        )

    def close(self) -> None:
        """Drop what belongs to this worker, but for what was kept.

        Raises:
            HarnessError: somebody else is connected and can't be disconnected; names them.
        """
        self._background.shutdown(wait=True)  # what it could not do is done below, or fails again
        if self._background_connection is not None:
            self._background_connection.close()
        mine = [
            d
            for d in databases.ours(self._connection)
            if d.name == self.name
            or d.name.startswith((f"app_s_{self._suffix}_", f"app_d_{self._suffix}_"))
        ]
        databases.drop(self._connection, mine)
        self._connection.close()

    @property
    def _suffix(self) -> str:
        return f"{self._environment.run}_{self._environment.worker}"

    def watch(self, *statements: sql.Composable) -> None:
        """Take the count of sessions of a fresh database.

        Args:
            statements: run before, in the same round trip and, implicitly, transaction.
        """
        count = sql.SQL(
            "SELECT oid, pg_stat_get_db_sessions(oid) FROM pg_database WHERE datname = {}"
        )
        cursor = self._connection.execute(
            sql.SQL("; ").join([*statements, count.format(sql.Literal(self.name))])
        )
        while cursor.nextset():
            pass
        row = cursor.fetchone()
        assert row is not None
        self._oid, self._sessions = row
        self.own_sessions = 0

    def _drop(self, name: str) -> None:
        databases.drop(
            self._connection, [d for d in databases.ours(self._connection) if d.name == name]
        )

    def _in_background(self) -> Connection:
        if self._background_connection is None:
            self._background_connection = databases.connect(self._environment)
        return self._background_connection

    def _make_spare(self) -> str:
        name = f"app_s_{self._suffix}_{next(self._numbers)}"
        self._clone(self._in_background(), name)
        return name

    def _drop_in_background(self, name: str) -> None:
        connection = self._in_background()
        databases.drop(connection, [d for d in databases.ours(connection) if d.name == name])
