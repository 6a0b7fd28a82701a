"""The harness of one process: started when the first test needs it, settled after each, stopped."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from .checks import failure, uncommitted, versions
from .environment import Environment
from .errors import HarnessError
from .layout import NAME
from .recipe import Recipe
from .summary import Summary

if TYPE_CHECKING:
    from .golden.databases import Connection
    from .isolation.connections import KeptConnections
    from .isolation.worker import Left, Stored, WorkerDatabase
    from .servers.postgres import EmbeddedServer

T = TypeVar("T")


class Harness:
    """Puts the parts together. Imports of drivers wait for `start()`: unit tests don't need them."""

    def __init__(
        self, environment: Environment, recipe: Callable[[], Recipe], say: Callable[[str], None]
    ) -> None:
        self.environment = environment
        self.summary = Summary()
        self.header: list[str] = []
        self.worker: WorkerDatabase
        self.lost: HarnessError | None = None
        """How the server failed, once it did: what comes after fails as well."""
        self._recipe = recipe
        self._say = say
        self._server: EmbeddedServer | None = None
        self._connection: Connection | None = None
        self._kept: KeptConnections | None = None
        self._failure: Exception | None = None
        self._started = False
        self._dirty = False
        self._log_begin = 0
        self._log_seen = -1
        self._left: list[str] = []
        self._perhaps_left: dict[str, str] = {}  # on the server, after which test

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The service's recipe, from `tests/conftest.py`."""
        return self._recipe()

    # --- start and stop -----------------------------------------------------------------------

    def start(self) -> None:
        """Have the worker's database ready. The second call does nothing, or fails as the first.

        Raises:
            HarnessError: there is no server, or no golden database can be built.
        """
        if self._failure is not None:
            raise self._failure
        if self._started:
            return
        try:
            versions.check_installed(versions.DRIVERS)
            with self._explained():
                self._start()
        except Exception as error:
            self._failure = error
            if isinstance(error, HarnessError):
                failure.note(self.environment, error)
            raise
        self._started = True
        self._see()

    def _start(self) -> None:
        import psycopg

        from .golden import databases

        try:
            self._prepare()
        except psycopg.Error as error:
            if self._server is None or not databases.tells_of_damage(error):
                raise
            self._say(f"making the embedded server anew, it is damaged: {error}")
            if self._connection is not None:
                self._connection.close()
            self._server.discard()
            self._prepare()

    def _prepare(self) -> None:
        from .golden import databases
        from .isolation.worker import WorkerDatabase
        from .servers import guard

        failure.recall(self.environment)
        server = self._start_server()
        self._connection = databases.connect(self.environment)
        if self.environment.external_url:
            guard.check_server(self._connection)
            server = (
                f"PostgreSQL {self._connection.info.server_version // 10000}, TEST_DATABASE_URL"
            )
        self._hold_run(self._connection)
        swept, self.summary.left = databases.sweep(self._connection, self.environment.run)
        self._kept = self._kept_connections()
        self.worker = WorkerDatabase(
            self.environment, self._connection, self.recipe, self._say, self._kept
        )
        self.worker.open()
        with suppress(ModuleNotFoundError):  # the service uses Postgres without SQLAlchemy
            self._watch_sqlalchemy()
        self.header = [
            f"database: {server}",
            f"golden: {self.worker.golden.name}, {self.worker.golden.story}",
            f"after a test: {self.worker.way}",
        ]
        if few := databases.few_connections(self._connection):
            self.header.append(few)
        if swept:
            self.header.append(f"swept: {len(swept)} databases that runs before left behind")

    def _hold_run(self, connection: Connection) -> None:
        from .golden import databases

        connection.execute("SET stats_fetch_consistency = none")
        databases.hold_run(connection, self.environment.run)

    def _settle(self, *, keep: bool = False) -> Left:
        return self._tried_again(lambda: self.worker.settle(keep=keep))

    def _tried_again(self, step: Callable[[], T]) -> T:
        """What the worker answers; asked once more where somebody has ended our session meanwhile."""
        import psycopg

        from .golden import databases

        try:
            return step()
        except psycopg.errors.AdminShutdown as ended:
            try:
                self._connection = databases.connect(self.environment)
            except HarnessError:  # it was the whole server that was told to stop
                raise ended from None
        self._hold_run(self._connection)
        self.worker.use(self._connection)
        return step()

    def _watch_sqlalchemy(self) -> None:
        from .isolation import pools

        uncommitted.watch()
        pools.watch()

    def _kept_connections(self) -> KeptConnections | None:
        try:
            from .isolation.connections import KeptConnections
        except ModuleNotFoundError:  # the service does not use SQLAlchemy with asyncpg
            return None
        return KeptConnections(self.environment.database)

    def _start_server(self) -> str:
        if self.environment.external_url is not None:
            return ""
        from .servers import postgres

        self._server = postgres.EmbeddedServer(self.environment.home, run=self.environment.run)
        started = self._server.start()
        postgres.sweep(self.environment.home)
        return f"PostgreSQL {started.version}, embedded, {started.how} in {started.seconds:.2f} s"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The harness's own work, in whatever test: say of what goes wrong where it did."""
        import psycopg

        from .checks.offline import offline

        try:
            with offline(False):  # a unit test may be the first, or the last
                yield
        except (psycopg.Error, OSError, subprocess.SubprocessError) as error:
            if self._server is None:
                where, log = "TEST_DATABASE_URL", ""
            else:
                where, log = f"embedded, in {self.environment.home}", f"\n{self._server.log_tail()}"
            self.lost = self.lost or HarnessError(
                f"The tests' database server ({where}) failed:\n{str(error).strip()}{log}\n"
                "The next run starts from a whole database again. If it fails like this one, mend what is named "
                f"above, or let `python -m {NAME} clean` remove what the harness keeps."
            )
            raise self.lost from error

    def keep_connections(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        """Keep what the service opens on the session's event loop, until the returned is called."""
        kept = self._kept
        if kept is None:
            return lambda: None
        kept.watch(loop)
        return lambda: loop.run_until_complete(kept.close())

    def stop(self) -> Summary:
        """Compare the database a last time, drop it, and leave the server."""
        steps: list[Callable[[], object]] = []
        if self._started:
            self.summary.add(self.worker.summary)
            if not self.lost:
                steps += [self._last_comparison, self._last_look_at_server]
        if self._connection is not None:
            if self._started and not self._connection.closed:
                steps.append(self._close_worker)
            steps.append(self._connection.close)
        if self._server is not None:
            steps.append(self._server.stop)
        told = (self.lost or self._failure) is not None
        for step in steps:
            try:
                with self._explained():
                    step()
            except HarnessError as error:
                if not told:
                    self.summary.problems.append(str(error))
        self._started = False
        return self.summary

    def _close_worker(self) -> None:
        try:
            self.worker.close()
        except HarnessError as error:  # the next run drops them
            self.summary.left.append(str(error))

    def _last_comparison(self) -> None:
        if wrong := self.worker.verify():
            self.summary.problems.append(
                f"{self.environment.worker}: the tests' database is not as the golden one any more, and no test was "
                f"seen to change it: {'; '.join(wrong)}"
            )

    def _last_look_at_server(self) -> None:
        there = self.worker.on_the_server() if self._perhaps_left else set()
        self.summary.left += [
            f"left on the server, by {test} or by what ran beside it: {what}"
            for what, test in self._perhaps_left.items()
            if what in there
        ]

    # --- around a test ------------------------------------------------------------------------

    def before_test(self, *, own_database: bool = False) -> None:
        """Note where the log of Postgres ends, and make up for what could not be done before.

        Args:
            own_database: the test wants a database whose rows no test has touched.

        Raises:
            HarnessError: the database is still not one that a test may see.
        """
        if not self._started:
            return
        if self._server is not None:
            self._log_begin = self._server.log_size()
        if self._dirty or own_database:
            with self._explained():
                if self._dirty:
                    self._settle()
                if own_database:
                    self.worker.renew()
            self._dirty = False
            self._see()
        if self._kept is not None:
            self._kept.begin()
        self.worker.prefetch(int(own_database))  # the test after it will need another

    def after_test(self, name: str, *, failed: bool) -> list[str]:
        """Put back what the test changed.

        Args:
            name: of the test.
            failed: and so, what it stored is kept for the user.

        Returns:
            What it left, in paragraphs.

        Raises:
            HarnessError: the database can be neither put back nor replaced.
        """
        left, self._left = self._left, []
        if not self._started or self._dirty or self._is_untouched():
            return left
        self._dirty = True
        with self._explained():
            found = self._settle(keep=failed)
        self._dirty = False
        self._see()
        if found.kept:
            self.summary.kept.append(f"{name}\n    python -m {NAME} psql {found.kept}")
        if found.ended:
            self.summary.left.append(
                f"{name} had its database replaced, and so ended {found.ended} sessions that wider fixtures hold: "
                "tests that use them later fail"
            )
        if found.sessions:
            left.append("The test left database sessions open:\n" + "\n".join(found.sessions))
        if found.others:
            self._perhaps_left |= dict.fromkeys(found.shared, name)
        elif found.shared:
            left.append(
                "The test left on the server, where nobody takes it away:\n"
                + "\n".join(f"  {what}" for what in found.shared)
            )
        return left

    def _is_untouched(self) -> bool:
        """Whether nobody connected since the last look, which costs nothing to find out.

        The embedded server logs each connection before it accepts it.
        """
        return (
            self._server is not None
            and -1 < self._server.log_size() == self._log_seen
            and not (self._kept is not None and self._kept.used)
            and not self.worker.has_open_sessions
        )

    def _see(self) -> None:
        if self._server is not None:
            self._log_seen = self._server.log_size()
        if self._kept is not None:
            self._kept.used = False

    # --- around a fixture of a wider scope ------------------------------------------------------

    @contextmanager
    def around_fixture(self, name: str, afterwards: ExitStack) -> Iterator[None]:
        """What the set-up of a fixture changes stays for its scope.

        Args:
            name: of the fixture.
            afterwards: gets what is to be done after its tear-down.

        Raises:
            HarnessError: what it changes can't stay.
        """
        if not self._started:
            yield
            return
        begun = not self._is_untouched()  # a test, in whose midst it is
        with self._explained():
            before = self.worker.look() if begun else None
        stored: Stored | None = None
        afterwards.callback(lambda: self._after_fixture(stored))
        yield
        if self._is_untouched():
            return
        with self._explained():
            stored = self.worker.push(name, before)
        if not begun:
            self._see()

    def _after_fixture(self, stored: Stored | None) -> None:
        """Undo what a wider fixture stored, and what its tear-down did."""
        if not self._started or (not stored and (self._dirty or self._is_untouched())):
            return
        with self._explained():
            sessions = self.worker.pop(stored) if stored else self._settle().sessions
        self._see()
        if sessions:
            self._left.append("A fixture left database sessions open:\n" + "\n".join(sessions))

    # --- for the report of a test that failed ---------------------------------------------------

    def log_of_test(self) -> str:
        """What the embedded Postgres logged since the test began."""
        return self._server.log_since(self._log_begin) if self._server is not None else ""

    def explain(self, report: str) -> str:
        """Who holds the server's connections, if a test failed because there was none left."""
        if not self._started:
            return ""
        from .golden import databases

        return databases.holders(self.environment, report) if databases.FULL.search(report) else ""

    def sessions_of_test(self) -> str:
        """What is open in the tests' database, what it did last, and for whom it waits."""
        if not self._started or self.lost:
            return ""
        with suppress(HarnessError), self._explained():  # the end of the test will tell
            return "\n".join(self._tried_again(self.worker.describe_open_sessions))
        return ""
