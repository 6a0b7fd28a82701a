"""The harness of one process: started when the first test needs it, settled after each, stopped."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .checks import failure, versions
from .environment import Environment
from .errors import HarnessError
from .recipe import Recipe, resolve

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

    from .golden.databases import Connection
    from .isolation.connections import ReusedConnections
    from .isolation.worker import WorkerDatabase
    from .servers.postgres import EmbeddedServer
    from .transaction import TestTransaction


@dataclass
class Summary:
    """What a process has to tell at the end; workers send it to the process that prints."""

    clones: int = 0
    replaced: int = 0
    seconds: float = 0.0
    leaks: int = 0
    kept: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Add what another process told."""
        self.clones += other.clones
        self.replaced += other.replaced
        self.seconds += other.seconds
        self.leaks += other.leaks
        self.kept += other.kept
        self.left += other.left
        self.problems += other.problems


class Harness:
    """Puts the parts together. Imports of drivers wait for `start()`: unit tests don't need them."""

    def __init__(
        self, environment: Environment, recipe: Callable[[], Recipe], say: Callable[[str], None]
    ) -> None:
        self.environment = environment
        self.summary = Summary()
        self.header: list[str] = []
        self.worker: WorkerDatabase
        self.transaction: TestTransaction
        self.reused: ReusedConnections
        self._recipe = recipe
        self._say = say
        self._server: EmbeddedServer | None = None
        self._connection: Connection | None = None
        self._failure: Exception | None = None
        self.lost: HarnessError | None = None
        """How the server failed, once it did: what comes after fails as well."""
        self._started = False
        self._touched: bool | None = None
        self._dirty = False
        self._log_begin = 0
        self._engine: AsyncEngine | None = None

    @property
    def started(self) -> bool:
        """Whether there is a database for the tests."""
        return self._started

    @property
    def recipe(self) -> Recipe:
        """The service's recipe, from `tests/conftest.py`."""
        return self._recipe()

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
        from .isolation.connections import ReusedConnections
        from .isolation.worker import WorkerDatabase
        from .servers import guard
        from .transaction import TestTransaction

        failure.recall(self.environment)
        server = self._start_server()
        self._connection = databases.connect(self.environment)
        if self.environment.external_url:
            guard.check_server(self._connection)
            server = (
                f"PostgreSQL {self._connection.info.server_version // 10000}, TEST_DATABASE_URL"
            )
        self._connection.execute("SET stats_fetch_consistency = none")
        databases.hold_run(self._connection, self.environment.run)
        swept, self.summary.left = databases.sweep(self._connection, self.environment.run)
        self.worker = WorkerDatabase(self.environment, self._connection, self.recipe, self._say)
        self.worker.open()
        self.transaction, self.reused = TestTransaction(), ReusedConnections()
        with databases.connect(self.environment, self.environment.database) as inside:
            self.transaction.deferred = databases.deferred_constraints(inside)
            self.transaction.reset_sequences = databases.reset_sequences(inside)
        self.worker.watch()
        self.header = [
            f"database: {server}",
            f"golden: {self.worker.golden.name}, {self.worker.golden.story}",
        ]
        if swept:
            self.header.append(f"swept: {len(swept)} databases that runs before left behind")

    def _start_server(self) -> str:
        if self.environment.external_url is not None:
            return ""
        from .servers import postgres as server

        self._server = server.EmbeddedServer(self.environment.home)
        started = self._server.start()
        server.sweep(self.environment.home)
        return f"PostgreSQL {started.version}, embedded, {started.how} in {started.seconds:.2f} s"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of what goes wrong on the server or on this machine where it did."""
        import psycopg

        try:
            yield
        except (psycopg.Error, OSError, subprocess.SubprocessError) as error:
            if self._server is None:
                where, log = "TEST_DATABASE_URL", ""
            else:
                where, log = f"embedded, in {self.environment.home}", f"\n{self._server.log_tail()}"
            self.lost = self.lost or HarnessError(
                f"The tests' database server ({where}) failed:\n{str(error).strip()}{log}\n"
                "The next run starts from a whole database again. If it fails like this one, mend what is named "
                "above, or let `python -m tests.harness clean` remove what the harness keeps."
            )
            raise self.lost from error

    @property
    def engine(self) -> AsyncEngine:
        """The service's engine; from now on, its connections are lent or reused."""
        if self._engine is None:
            from sqlalchemy import NullPool, event
            from sqlalchemy.ext.asyncio import AsyncEngine

            found = resolve(self.recipe.engine)
            engine: AsyncEngine = found if isinstance(found, AsyncEngine) else found()
            if engine.driver != "asyncpg":
                raise HarnessError(
                    f"{self.recipe.engine} uses the driver {engine.driver}. Only connections of asyncpg can be "
                    "lent to a rollback test."
                )
            if not isinstance(engine.pool, NullPool):
                raise HarnessError(
                    f"{self.recipe.engine} keeps connections in a {type(engine.pool).__name__}. In tests it must "
                    "use NullPool, or connections outlive the test that opened them: see docs/testing.md."
                )
            if engine.url.database != self.environment.database:
                raise HarnessError(
                    f"{self.recipe.engine} points at {engine.url.render_as_string()}, not at the tests' database: "
                    "it was imported before tests/__init__.py prepared the environment."
                )
            event.listen(engine.sync_engine, "do_connect", self._connect)
            self._engine = engine
        return self._engine

    @property
    def sessionmaker(self) -> async_sessionmaker[AsyncSession]:
        """The service's session factory."""
        from sqlalchemy.ext.asyncio import async_sessionmaker

        found = resolve(self.recipe.session)
        factory: async_sessionmaker[AsyncSession] = (
            found if isinstance(found, async_sessionmaker) else found()
        )
        return factory

    def _connect(self, dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        """SQLAlchemy's `do_connect`: a lent or a reused connection, or None for one like any other."""
        real = options.get("async_creator_fn", dialect.dbapi.asyncpg.connect)
        if self.transaction.active:
            create = self._lend(real)
        elif self.reused.active:
            create = functools.partial(self.reused.connect, real)
        else:
            return None
        return dialect.connect(*arguments, **{**options, "async_creator_fn": create})

    def _lend(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        name = f"tests.harness {self.environment.run} {self.environment.worker}"

        async def connect(*args: Any, **kwargs: Any) -> Any:
            settings = {**kwargs.pop("server_settings", {}), "application_name": name}
            raw = await real(*args, **kwargs, server_settings=settings)
            self.worker.own_sessions += 1
            return raw

        async def lend(*args: Any, **kwargs: Any) -> Any:
            return await self.transaction.lend(lambda: connect(*args, **kwargs))

        return lend

    def begin_reuse(self) -> None:
        """Let the service's engine use each connection again, until `reused.finish()`."""
        _ = self.engine
        self.reused.begin()

    def begin_rollback(self) -> None:
        """Let the service's engine work in one transaction, until `end_rollback`."""
        _ = self.engine
        self.transaction.begin(self.worker.generation)

    async def end_rollback(self) -> list[str]:
        """Roll that transaction back. Returns what was wrong with it."""
        problems, self._touched = await self.transaction.finish(self.worker.new_sessions)
        return problems

    def before_test(self) -> None:
        """Note where the log of Postgres ends. Make up for what could not be done after the last test.

        Raises:
            HarnessError: the database is still not one that a test may see.
        """
        if self._server is not None:
            self._log_begin = self._server.log_size()
        if self._dirty:
            with self._explained():
                self.worker.replace()
            self._dirty = False

    def log_of_test(self) -> str:
        """What the embedded Postgres logged since the test began."""
        return self._server.log_since(self._log_begin) if self._server is not None else ""

    def explain(self, failure: str) -> str:
        """Who holds the server's connections, if a test failed because there was none left."""
        if not self._started:
            return ""
        from .golden import databases

        return databases.holders(self.environment) if databases.FULL.search(failure) else ""

    def sessions_of_test(self) -> str:
        """What is open in the tests' database, and what it did last: whoever waits, waits for one of these."""
        if not self._started or self.lost:
            return ""
        from .golden import databases

        lines = [
            f"  the test's transaction: {query}" for query in self.transaction.last_statements()
        ]
        with suppress(HarnessError), self._explained():  # the end of the test will tell
            assert self._connection is not None
            lines += databases.describe_sessions(self._connection, self.environment.database)
        return "\n".join(lines)

    def before_call(self, *, spares: int) -> None:
        """A test is about to run. It, and those after it, will want so many fresh databases."""
        if self._started:
            self.worker.prefetch(spares)

    def after_test(self, name: str, *, failed: bool) -> list[str]:
        """Replace the database if the test touched it.

        Returns:
            Sessions that it left open, a line each.

        Raises:
            HarnessError: it can't be replaced.
        """
        if not self._started or self._dirty:
            return []
        known, self._touched = self._touched, None
        with self._explained():
            touched, empty = self.worker.touched() if known is None else (known, False)
            if not touched:
                return []
            left = [] if empty else self.worker.settle()
            self._dirty = True
            old = self.worker.replace(keep=failed, empty=empty)
            self._dirty = False
        if failed:
            self.summary.kept.append(f"{name}\n    python -m tests.harness psql {old}")
        return left

    def stop(self) -> Summary:
        """Compare the database a last time, drop it, and leave the server."""
        steps: list[Callable[[], object]] = []
        if self._started:
            statistics = self.worker.statistics
            self.summary.clones, self.summary.replaced = statistics.clones, statistics.replaced
            self.summary.seconds, self.summary.leaks = statistics.seconds, statistics.leaks
            if not self.lost:
                steps.append(self._last_comparison)
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
        from .golden import build as golden
        from .golden import databases

        with databases.connect(self.environment, self.environment.database) as inside:
            wrong = golden.verify(inside, self.worker.golden)
        if wrong:
            self.summary.problems.append(
                f"{self.environment.worker}: the tests' database is not as the golden one any more, and no test was "
                f"seen to change it: {'; '.join(wrong)}"
            )
