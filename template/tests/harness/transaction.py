"""One transaction for all that a test does through the service's engine; rolled back at its end.

While a test uses `db_session`, each connection that the service's engine opens is *lent*: a thin
stand-in for one real asyncpg connection that the worker keeps. On it, the service's transactions
are savepoints: BEGIN sets one, COMMIT releases it, ROLLBACK returns to it. So the code under test
commits and rolls back as ever, sees its own commits from every session, and leaves nothing.

One connection can only do one thing at a time, so transactions that overlap take turns:

- A transaction begun inside another, by the same task or by one that it started, nests in it. A
  test that holds a session open may call the service.
- Siblings, for example the requests of an `asyncio.gather`, wait for each other.
- What savepoints can't express fails with an error that names `own_database`: rolling back a
  transaction within which another one was committed, for example.

What is sent is kept to a minimum: BEGIN travels with the first savepoint, and the end of one
transaction with the begin of the next.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import asyncpg

from .errors import HarnessError
from .lent import LentConnection

_PATIENCE = 10.0
"""Seconds that a transaction waits for its turn, and the end of a test for the server."""

_DEFINES = re.compile(
    r"\s*(?:/\*.*?\*/\s*)*(?:alter|create|drop|do|call|comment|grant|revoke|import|reindex|security)\b",
    re.IGNORECASE | re.DOTALL,
)
_FORGETS = re.compile(r"\b(?:prepare|deallocate|discard)\b", re.IGNORECASE)
_READS = re.compile(
    r"\s*(?:/\*.*?\*/\s*)*(?:select|with|values|show|savepoint|release)\b",
    re.IGNORECASE | re.DOTALL,
)
_WRITES = re.compile(r"\b(?:insert|delete|merge|(?<!for )(?<!key )update)\b", re.IGNORECASE)

_OWN_DATABASE = "Mark the test @pytest.mark.own_database: there, transactions are real."
_ENDED = (
    "The transaction that the test runs in was ended by a raw COMMIT or ROLLBACK. Use the session's commit() and "
    "rollback(). " + _OWN_DATABASE
)

Connect = Callable[[], Awaitable[asyncpg.Connection]]


class Frame:
    """An open transaction of the code under test: one savepoint on the stack."""

    __slots__ = ("depth", "lent", "shared", "task", "wrote")

    def __init__(self, lent: LentConnection, depth: int) -> None:
        self.lent = lent
        self.depth = depth
        self.task = asyncio.current_task()
        self.wrote = False
        self.shared = ""
        """Why it can't be rolled back by itself any more."""


_held: ContextVar[tuple[Frame, ...]] = ContextVar("held", default=())
"""The open transactions that the running task began, or found open when it was started."""


class TestTransaction:
    """The worker's kept connection, and the transaction of a test that runs on it."""

    __test__ = False  # no test class, whatever its name

    def __init__(self) -> None:
        self.active = False
        self.deferred: Sequence[str] = ()
        """Quoted names of the constraints that are checked at COMMIT."""
        self.reset_sequences = ""
        """SQL that undoes what a rollback does not: a test finds the same numbers as any other."""
        self.prepared: dict[str, Any] = {}
        """Prepared statements of the kept connection, by their text."""
        self.configured: set[object] = set()
        """Type codecs that were set on the kept connection."""
        self._raw: asyncpg.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = -1
        self._turn = asyncio.Condition()
        self._statement = asyncio.Lock()
        self._reset()

    def _reset(self) -> None:
        self._stack: list[Frame] = []
        self._isolation: str | None = None
        self._begun = False
        self._pending = ""  # RELEASE or ROLLBACK TO the last savepoint: not sent yet
        self._doubtful = False  # a command was interrupted: whether it ran is not known
        self._stale = False  # the kept connection is no longer as it was
        self._ended = ""  # the transaction was ended by force
        self._impossible = ""  # something was asked for that savepoints can't do

    def begin(self, generation: int) -> None:
        """Lend connections from now on, on the running event loop. Nothing is sent before the first statement.

        Args:
            generation: of the worker's database; a connection to an older one is useless.
        """
        running = asyncio.get_running_loop()
        if self._generation != generation or self._loop is not running:
            self._discard()
            self._generation, self._loop = generation, running
            self._turn, self._statement = asyncio.Condition(), asyncio.Lock()
        self.active = True

    async def check_deferred(self) -> list[str]:
        """Check deferred constraints, as a COMMIT would. Returns what is violated."""
        if (
            not (self.deferred and self._begun)
            or self._ended
            or self._raw is None
            or self._raw.is_closed()
        ):
            return []
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._send_rollback()
                await self._send("SET CONSTRAINTS ALL IMMEDIATE")
        except asyncpg.IntegrityConstraintViolationError as error:
            return [f"A deferred constraint is violated: a real COMMIT would fail.\n{error}"]
        except TimeoutError:
            return [f"The server did not check deferred constraints within {_PATIENCE:.0f} s."]
        return []

    async def finish(self, new_sessions: str) -> tuple[list[str], bool | None]:
        """Roll back, and stop lending.

        Args:
            new_sessions: an SQL expression, not 0 if somebody else connected to the database.

        Returns:
            What was wrong, a paragraph each; and whether the database was changed for good, or None
            where that is not known.
        """
        self.active = False
        touched: bool | None = None
        problems = [
            f"A transaction was left open. Its last statement:\n  {f.lent.last}"
            for f in self._stack
        ]
        if self._begun and self._raw is not None:
            try:
                async with asyncio.timeout(_PATIENCE):
                    touched = await self._roll_back(new_sessions)
            except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                self._stale = touched = True
                problems.append(f"The test's transaction could not be rolled back: {error!r}")
        if self._ended:
            problems.append(self._ended)
        if self._stale:
            self._discard()
        if self._ended:
            touched = True
        self._reset()
        return problems, touched

    def last_statements(self) -> list[str]:
        """Of the transactions that are open in it, the outermost first."""
        return [frame.lent.last for frame in self._stack]

    async def close(self) -> None:
        """Close the kept connection."""
        if self._raw is not None and not self._raw.is_closed():
            # Its server side is gone where the database was replaced since.
            with suppress(OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
                await self._raw.close(timeout=_PATIENCE)
        self._raw = None

    async def lend(self, connect: Connect) -> LentConnection:
        """A connection for the service: a stand-in for the kept one, which is opened if need be."""
        self._check_loop()
        if self._raw is None or self._raw.is_closed():
            self._discard()
            self._raw = await connect()
        return LentConnection(self, self._raw)

    async def enter(self, lent: LentConnection, isolation: str | None) -> Frame:
        """Begin a transaction of the code under test: wait for the turn, set a savepoint."""
        self._check_loop()
        self._check()
        await self._wait(lambda: not self._stack or self._can_nest(self._stack[-1]))
        if self._begun and isolation not in (None, self._isolation):
            raise HarnessError(
                f"A rollback test can't change the isolation level midway. {_OWN_DATABASE}"
            )
        depth = self._stack[-1].depth + 1 if self._stack else 1
        frame = Frame(lent, depth)
        self._stack.append(frame)
        _held.set((*(f for f in _held.get() if f in self._stack), frame))
        pending, self._pending = self._pending, ""
        if pending == f"ROLLBACK TO SAVEPOINT h{depth}":
            command = pending  # the savepoint stays, and serves again
        else:
            begin = "" if self._begun else _begin(isolation)
            command = "; ".join(part for part in (pending, begin, f"SAVEPOINT h{depth}") if part)
        try:
            await self._send(command)
        except BaseException as error:
            self._doubtful = True
            self._begun = self._raw is not None and self._raw.is_in_transaction()
            await self._leave(frame)
            if isinstance(error, asyncpg.InFailedSQLTransactionError):
                raise HarnessError(
                    "A session whose last statement failed is still open; roll it back before another one is used. "
                    f"Or: {_OWN_DATABASE}"
                ) from error
            raise
        if not self._begun:
            self._begun, self._isolation = True, isolation
        return frame

    async def commit(self, frame: Frame) -> None:
        """End a transaction of the code under test as committed."""
        if frame not in self._stack:
            return
        innermost = frame is self._stack[-1]
        try:
            if self._ended:
                raise HarnessError(self._ended)
            if innermost:
                await self._send_rollback()
            if self.deferred:
                names = ", ".join(self.deferred)
                await self._send(
                    f"SET CONSTRAINTS {names} IMMEDIATE; SET CONSTRAINTS {names} DEFERRED"
                )
        except BaseException:
            self._pending = f"ROLLBACK TO SAVEPOINT h{frame.depth}"
            await self._leave(frame)
            raise
        if innermost:
            self._pending = f"RELEASE SAVEPOINT h{frame.depth}"
        if frame.wrote:
            for outer in self._stack[: self._stack.index(frame)]:
                outer.shared = "another session has been committed within it"
        await self._leave(frame)

    async def rollback(self, frame: Frame) -> None:
        """End a transaction of the code under test as rolled back."""
        if frame not in self._stack:
            return
        innermost = frame is self._stack[-1]
        shared = frame.shared or ("" if innermost else "another session is open within it")
        if not shared:
            self._pending = f"ROLLBACK TO SAVEPOINT h{frame.depth}"
        elif frame.wrote:
            # Told when the test goes on: sessions are also rolled back because it ends.
            self._impossible = (
                f"A session was rolled back, but {shared}: on the one connection of a rollback test, one can't be "
                f"undone without the other. {_OWN_DATABASE}"
            )
        elif innermost:
            await self._send_rollback()
            self._pending = f"RELEASE SAVEPOINT h{frame.depth}"
        await self._leave(frame)

    def abandon(self, frame: Frame) -> None:
        """Take a transaction off the stack whose connection was thrown away."""
        if frame in self._stack:
            self._stack.remove(frame)
            self._pending = f"ROLLBACK TO SAVEPOINT h{frame.depth}"

    async def run(
        self, lent: LentConnection, query: str, statement: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Run a statement of the code under test, when nobody else uses the connection."""
        self._check_loop()
        lent.last = query
        frame = lent.frame
        if frame is None:  # AUTOCOMMIT: a transaction of its own
            frame = lent.frame = await self.enter(lent, None)
            try:
                result = await self.run(lent, query, statement)
            except BaseException:
                await self.rollback(frame)
                raise
            await self.commit(frame)
            return result
        writes = not _READS.match(query) or _WRITES.search(query) is not None
        if frame in self._stack and frame is not self._stack[-1]:
            await self._wait(lambda: all(self._can_nest(f) for f in self._within(frame)))
            for inner in self._within(frame) if writes else ():
                inner.shared = "the session around it was used meanwhile"
        frame.wrote = frame.wrote or writes
        if _DEFINES.match(query):
            self._stale = True  # what is prepared may not fit the schema when it is back
        if _FORGETS.search(query):
            self._stale = True  # no rollback brings back or takes away what is prepared
            self.prepared.clear()
        async with self._statement:
            if self._pending.startswith("ROLLBACK"):
                pending, self._pending = self._pending, ""
                await self._execute(pending)
            try:
                return await statement()
            except asyncpg.InvalidCachedStatementError:
                self.prepared.clear()
                raise
            finally:
                if (
                    self._raw is not None
                    and not self._raw.is_closed()
                    and not self._raw.is_in_transaction()
                ):
                    self._ended = self._ended or f"{_ENDED}\n  {query}"

    def _within(self, frame: Frame) -> Sequence[Frame]:
        return self._stack[self._stack.index(frame) + 1 :]

    @staticmethod
    def _can_nest(frame: Frame) -> bool:
        """Whether to wait for a transaction's end would be in vain: its task waits for us, or is gone."""
        task = frame.task
        return frame in _held.get() or task is None or task.done() or task is asyncio.current_task()

    async def _wait(self, condition: Callable[[], bool]) -> None:
        if condition():
            return
        try:
            async with asyncio.timeout(_PATIENCE), self._turn:
                await self._turn.wait_for(condition)
        except TimeoutError:
            holder = self._stack[-1].lent.last if self._stack else "(none)"
            raise HarnessError(
                f"A session waited {_PATIENCE:.0f} s for another one, on the one connection of a rollback test. "
                f"The last statement of the other:\n  {holder}\n{_OWN_DATABASE}"
            ) from None
        self._check()

    def _check_loop(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise HarnessError(
                "The service was called on an event loop of its own, as asyncio.run, a TestClient, a loop_scope or anyio "
                "make one, but db_session belongs to the session's loop. Await it in an async test, which needs no "
                "marker for that. Or: " + _OWN_DATABASE
            )

    def _check(self) -> None:
        if not self.active:
            raise HarnessError(
                "The test is over, and so is its transaction: a task or a session outlived it."
            )
        if self._ended:
            raise HarnessError(self._ended)
        if self._impossible:
            raise HarnessError(self._impossible)

    async def _leave(self, frame: Frame) -> None:
        self._stack.remove(frame)
        frame.lent.frame = None
        async with self._turn:
            self._turn.notify_all()

    async def _send_rollback(self) -> None:
        if self._pending.startswith("ROLLBACK"):
            pending, self._pending = self._pending, ""
            await self._send(pending)

    async def _send(self, command: str) -> None:
        async with self._statement:
            await self._execute(command)

    async def _execute(self, command: str) -> None:
        assert self._raw is not None
        await self._raw.execute(command)

    async def _roll_back(self, new_sessions: str) -> bool:
        """End the transaction; True if it was not ours any more, or somebody else connected."""
        assert self._raw is not None
        # The first fails in any transaction but ours. Sequences and advisory locks are all that
        # outlives the second. The last one's status counts its rows: the answer costs no round trip.
        commands = [
            *([] if self._doubtful else ["ROLLBACK TO SAVEPOINT h1"]),
            "ROLLBACK",
            *([self.reset_sequences] if self.reset_sequences else []),
            "SELECT pg_advisory_unlock_all()",
            f"SELECT FROM generate_series(1, {new_sessions})",
        ]
        try:
            status = await self._raw.execute("; ".join(commands))
        except (asyncpg.InvalidSavepointSpecificationError, asyncpg.NoActiveSQLTransactionError):
            self._ended = self._ended or _ENDED
            self._stale = True
            return True
        return bool(status != "SELECT 0")

    def _discard(self) -> None:
        """Forget the kept connection: it is closed, of an older database, or not what it was."""
        if self._raw is not None and self._loop is not None and not self._loop.is_closed():
            self._raw.terminate()
        self._raw = None
        self.prepared.clear()
        self.configured.clear()


def _begin(isolation: str | None) -> str:
    level = f" ISOLATION LEVEL {isolation.replace('_', ' ')}" if isolation else ""
    return f"BEGIN{level}"
