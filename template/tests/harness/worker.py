"""The database that one worker's tests see: a clone of the golden one, replaced whenever dirty.

Its name, and with it `DATABASE_URL`, never changes. To replace it, the dirty database is renamed
away and a spare clone is renamed into its place; both take a fraction of a millisecond. The spare
is made, and the dirty one dropped, in the background.

Whether a test touched the database is not asked of the test, nor of a driver: Postgres counts the
sessions of each database.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql

from tests.harness import databases, golden
from tests.harness.databases import Connection
from tests.harness.environment import Environment
from tests.harness.errors import HarnessError
from tests.harness.golden import Golden, Say
from tests.harness.recipe import Recipe

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
        # One thread makes databases, the other drops them: neither waits for the other.
        self._makers = ThreadPoolExecutor(1, thread_name_prefix="tests.harness make")
        self._droppers = ThreadPoolExecutor(1, thread_name_prefix="tests.harness drop")
        self._threads = threading.local()
        self._background_connections: list[Connection] = []

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
            self._spares.append(self._makers.submit(self._make_spare))

    def touched(self) -> bool:
        """Whether anybody but the harness connected since the database was new, or took it away."""
        row = self._connection.execute(
            f"SELECT {self.new_sessions} FROM pg_database WHERE oid = %s AND datname = %s",
            (self._oid, self.name),
        ).fetchone()
        return row != (0,)

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

    def replace(self, *, keep: bool = False) -> str:
        """Put a fresh clone in the database's place.

        Args:
            keep: leave the old one for the user, instead of dropping it.

        Returns:
            The old database's new name.
        """
        begun = time.perf_counter()
        self.prefetch()
        spare = self._spares.popleft()
        old = f"app_{'k' if keep else 'd'}_{self._environment.run}_{self._environment.worker}_{next(self._numbers)}"
        try:
            self._swap(old, spare)
        except HarnessError:
            if not spare.exception():
                self._spares.appendleft(spare)
            raise
        if not keep:
            self._droppers.submit(self._drop_in_background, old)
        self.generation += 1
        self.watch()
        self.statistics.replaced += 1
        self.statistics.seconds += time.perf_counter() - begun
        return old

    def _swap(self, old: str, spare: Future[str]) -> None:
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
                with self._connection.transaction():
                    self._connection.execute(sql.SQL("{}; {}").format(aside, into))
                return
            except psycopg.errors.ObjectInUse:
                continue
            except psycopg.errors.InvalidCatalogName:  # dropped by the test
                self._connection.execute(into)
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
        for threads in (self._makers, self._droppers):
            threads.shutdown(wait=True)  # what they could not do is done below, or fails again
        for connection in self._background_connections:
            connection.close()
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

    def watch(self) -> None:
        """Take the count of sessions of a fresh database."""
        row = self._connection.execute(
            "SELECT oid, pg_stat_get_db_sessions(oid) FROM pg_database WHERE datname = %s",
            (self.name,),
        ).fetchone()
        assert row is not None
        self._oid, self._sessions = row
        self.own_sessions = 0

    def _drop(self, name: str) -> None:
        databases.drop(
            self._connection, [d for d in databases.ours(self._connection) if d.name == name]
        )

    def _in_background(self) -> Connection:
        if not hasattr(self._threads, "connection"):
            self._threads.connection = databases.connect(self._environment)
            self._background_connections.append(self._threads.connection)
        connection: Connection = self._threads.connection
        return connection

    def _make_spare(self) -> str:
        name = f"app_s_{self._suffix}_{next(self._numbers)}"
        self._clone(self._in_background(), name)
        return name

    def _drop_in_background(self, name: str) -> None:
        connection = self._in_background()
        databases.drop(connection, [d for d in databases.ours(connection) if d.name == name])
