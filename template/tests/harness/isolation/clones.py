"""Databases made in advance: the one that the tests see is replaced in a moment.

Its name, and with it `DATABASE_URL`, never changes. To replace it, it is renamed away and a spare
clone is renamed into its place; both take a fraction of a millisecond. Spares are made, and what
was replaced is dropped, in the background.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
from psycopg import sql

from ..environment import Environment
from ..errors import HarnessError
from ..golden import databases
from ..golden.databases import Connection
from ..summary import Summary
from . import changes
from .changes import Fresh

_SWAPS = 2  # attempts to replace a database; Postgres itself waits for 5 s in each


class Clones:
    """The worker's database and its spares.

    Args:
        environment: of this process.
        connection: to the maintenance database.
        summary: to count in.
        clone: makes a database, by a connection and under a name, that holds what tests start from.
    """

    def __init__(
        self,
        environment: Environment,
        connection: Connection,
        summary: Summary,
        clone: Callable[[Connection, str], None],
    ) -> None:
        self.name = environment.database
        self._environment = environment
        self._connection = connection
        self._summary = summary
        self._clone = clone
        self._numbers = itertools.count(1)
        self._spares: deque[Future[str]] = deque()
        # One thread makes and drops: with two, the server has more to do at a time than a machine
        # with two cores does beside a test.
        self._background = ThreadPoolExecutor(1, thread_name_prefix="tests.harness databases")
        self._background_connection: Connection | None = None

    def use(self, connection: Connection) -> None:
        """Use another connection, and another in the background. Spares may have failed, too."""
        self._connection = connection
        if self._background_connection is not None:
            self._background.submit(self._background_connection.close)
        self.forget_spares()

    def make(self, connection: Connection, name: str) -> None:
        """Make a clone, with the limits of tests."""
        self._clone(connection, name)
        self._summary.clones += 1
        # All sessions get them, of whatever role and driver; they go with the database.
        limits = self._environment.limits
        databases.configure(connection, name, limits, of_all=True)
        databases.configure(connection, name, limits)

    def prefetch(self, spares: int = 1) -> None:
        """Begin to make spare clones, up to so many in all."""
        while len(self._spares) < spares:
            self._spares.append(self._background.submit(self._make_spare))

    def forget_spares(self) -> None:
        """Drop the spares: tests are to start from something else."""
        while self._spares:
            self._background.submit(self._drop_in_background, self._spares.popleft().result)

    def replace(self, *, keep: bool = False) -> tuple[str, Fresh]:
        """Put a fresh clone in the database's place. Whoever is connected is disconnected.

        Args:
            keep: leave the old one for the user, instead of dropping it.

        Returns:
            The old database's new name, and the new one.

        Raises:
            HarnessError: something connects to it again and again.
        """
        begun = time.perf_counter()
        # First: what a test left may be all the connections there are, and a spare needs one.
        databases.disconnect(self._connection, self.name)
        self.prefetch()
        spare = self._spares.popleft()
        old = self.new_name("k" if keep else "d")
        try:
            fresh = self._swap(old, spare)
        except HarnessError:
            if not spare.exception():
                self._spares.appendleft(spare)
            raise
        if not keep:
            self._background.submit(self._drop_in_background, lambda: old)
        self._summary.replaced += 1
        self._summary.seconds += time.perf_counter() - begun
        return old, fresh

    def _swap(self, old: str, spare: Future[str]) -> Fresh:
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        aside = rename.format(sql.Identifier(self.name), sql.Identifier(old))
        waits = not spare.done()
        into = rename.format(sql.Identifier(spare.result()), sql.Identifier(self.name))
        for attempt in range(_SWAPS):
            if waits or attempt:  # something may have reconnected
                databases.disconnect(self._connection, self.name)
            try:
                return self.look(aside, databases.as_ours(old), into)  # all, or nothing
            except psycopg.errors.ObjectInUse:
                continue
            except psycopg.errors.InvalidCatalogName:  # dropped by the test
                return self.look(into)
        raise HarnessError(
            f"{self.name} can't be replaced, because something connects to it again and again:\n"
            + "\n".join(
                databases.describe_sessions(
                    self._connection, databases.sessions(self._connection, self.name)
                )
            )
        )

    def look(self, *statements: sql.Composable) -> Fresh:
        """What there is of a database in which nothing happened yet.

        Args:
            statements: run before, in the same round trip and, implicitly, transaction.
        """
        present = sql.SQL(
            "SELECT d.oid::bigint, {}, pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1 "
            "FROM pg_database d WHERE datname = {}"
        ).format(sql.SQL(changes.STATE), sql.Literal(self.name))
        cursor = self._connection.execute(sql.SQL("; ").join([*statements, present]))
        while cursor.nextset():
            pass
        row = cursor.fetchone()
        assert row is not None
        oid, state, shared, since = row
        return Fresh(oid, state, shared, since % 2**32)

    def new_name(self, kind: str) -> str:
        """A name of this worker for a database; for the kinds see `golden/databases.py`."""
        return f"app_{kind}_{self._suffix}_{next(self._numbers)}"

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
            or (d.kind in "sdt" and d.name[6:].startswith(f"{self._suffix}_"))
        ]
        databases.drop(self._connection, mine)

    @property
    def _suffix(self) -> str:
        return f"{self._environment.run}_{self._environment.worker}"

    def drop(self, name: str) -> None:
        """Drop a database of this worker's."""
        databases.drop_named(self._connection, name)

    def _in_background(self) -> Connection:
        if self._background_connection is None or self._background_connection.closed:
            self._background_connection = databases.connect(self._environment)
        return self._background_connection

    def _make_spare(self) -> str:
        name = self.new_name("s")
        self.make(self._in_background(), name)
        return name

    def _drop_in_background(self, name: Callable[[], str]) -> None:
        databases.drop_named(self._in_background(), name())
