"""Run programs: beside pytest, in processes of their own, and without the harness."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, Pool

from app.database import make

from . import prelude
from .state import SESSIONS, describe

_PATIENCE = 5.0  # seconds for what is closed or cancelled to be gone

_BUSY = """
    SELECT pid FROM pg_stat_get_activity(NULL) a
    WHERE datid = (SELECT oid FROM pg_database WHERE datname = %s) AND application_name !~ '^tests.harness'
      AND (state <> 'idle' OR EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid))
"""
_LOST = re.compile("clos(?:ed|ing)|terminat|connection is lost|consuming input|broken|not connected|released")

Trace = list[list[Any]]


class Lost(BaseException):
    """There is no going on, and so no way to a smaller program."""


class ProcessError(Exception):
    """What ended the code in another process."""


ERRORS = (
    prelude.UndoError,
    ProcessError,
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    psycopg.Error,
    OSError,
    TypeError,  # COPY of asyncpg, where a column has another type by now
    ValueError,
)
"""What a step may raise; anything else is a fault of the program's text."""


def shown(value: Any) -> Any:
    """What of a result is the same in each run."""
    if getattr(value, "returns_rows", False):
        value = value.all()
    if isinstance(value, list):
        return sorted(
            type(item).__name__ if isinstance(item, Exception) else repr(tuple(item) if item is not None else None)
            for item in value
        )  # fmt: skip
    if isinstance(value, (psycopg.Cursor, psycopg.AsyncCursor)):
        result = value.pgresult
        if result is None or not result.nfields:
            return value.rowcount
        return sorted(
            repr([result.get_value(row, column) for column in range(result.nfields)]) for row in range(result.ntuples)
        )
    return getattr(value, "rowcount", value)


def shown_error(error: BaseException) -> list[str]:
    """Its class and its SQLSTATE; a connection may be found lost in several ways."""
    state = getattr(error, "sqlstate", None) or getattr(getattr(error, "orig", None), "sqlstate", None)
    lost = (state or "")[:2] == "08" or state in ("57P01", "57P05")
    if not isinstance(error, TimeoutError) and (
        lost
        or getattr(error, "connection_invalidated", False)
        or isinstance(error, OSError)
        or (not state and _LOST.search(str(error)))
    ):
        return ["the connection is lost"]
    return [str(error) if isinstance(error, ProcessError) else type(error).__name__, state or ""]


class Runner:
    """Runs programs in one database after the other, on the running event loop.

    Args:
        conninfo: of the server.
        names: what programs find by these names, instead of what they import.
    """

    def __init__(self, conninfo: str, **names: Any) -> None:
        self.names = names
        self.control = psycopg.connect(conninfo, autocommit=True, application_name="programs")
        self.child = Other("child")
        self.stayed = set[int]()
        self.kept: list[Any] = []
        self.heard: list[Any] = []
        self.open = weakref.WeakKeyDictionary[asyncpg.Connection, int]()
        # Not when they are opened and closed: who listens to that may keep others from reusing them.
        event.listen(Pool, "checkout", lambda c, *_: self.note(c.driver_connection))
        event.listen(Pool, "checkin", lambda c, _: c and self.open.pop(c.driver_connection, 0))

    def note(self, driver: Any) -> None:
        """SQLAlchemy works with a session."""
        self.open[driver] = pid_of(driver)

    def held(self) -> set[int]:
        """The sessions that a program has not given back."""
        pids = {pid for driver, pid in self.open.items() if not driver.is_closed()}
        for session in self.kept:
            if isinstance(session, (asyncpg.Connection, psycopg.Connection, psycopg.AsyncConnection)):
                pids.add(pid_of(session))
        return pids | self.stayed

    def close(self) -> None:
        self.child.close()
        self.control.close()

    def sessions(self, database: str, condition: str = "true") -> set[int]:
        """The sessions in a database that are not the harness's own."""
        rows = self.control.execute(
            f"""
            SELECT pid FROM pg_stat_activity
            WHERE datname = %s AND usesysid IS NOT NULL AND application_name !~ '^tests.harness' AND {condition}
            """,
            [database],
        )
        return {pid for (pid,) in rows}

    def described(self, sessions: set[int]) -> list[str]:
        """Each of them, and what it did last."""
        rows = self.control.execute(
            "SELECT concat_ws(' ', pid, application_name, state, query) FROM pg_stat_activity WHERE pid = ANY (%s)",
            [list(sessions)],
        )
        return [line for (line,) in rows]

    def roll_back_prepared(self, database: str, conninfo: str) -> None:
        """End what was prepared in a database that is to be dropped."""
        prepared = "SELECT gid FROM pg_prepared_xacts WHERE database = %s"
        for (gid,) in self.control.execute(prepared, [database]).fetchall():
            with psycopg.connect(conninfo, autocommit=True) as inside:
                inside.execute(f"ROLLBACK PREPARED '{gid}'")

    def busy(self, database: str) -> set[int]:
        """Those that do something, or hold something."""
        return {pid for (pid,) in self.control.execute(_BUSY, [database])}

    async def run(self, source: str, database: str, engine: AsyncEngine, factory: Any) -> Trace:
        """Run the text of a program. Returns what it saw, in order."""
        trace: Trace = []
        runner, url = self, engine.url.render_as_string(hide_password=False)

        class step(prelude.step):  # noqa: N801
            def __enter__(self) -> None:
                trace.append(["step", self.number])

            def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
                if error is not None:
                    trace.append(["raised", *shown_error(error)])
                return isinstance(error, ERRORS)

            async def __aenter__(self) -> None:
                self.raw = {pid_of(session): session for session in self.sessions}
                self.before = runner.busy(database) - runner.held() - set(self.raw)
                self.__enter__()

            async def __aexit__(self, kind: Any, error: Any, trace_: Any) -> bool:
                deadline = time.monotonic() + _PATIENCE
                while busy := runner.busy(database) - self.before - runner.held():
                    if busy <= {pid for pid, session in self.raw.items() if not is_closed(session)}:
                        break
                    if time.monotonic() > deadline:
                        trace.append(["still busy"])
                        break
                    await asyncio.sleep(0.001)
                return self.__exit__(kind, error, trace_)

        def process(code: str, stay: bool = False) -> None:
            failed, pid = runner.child.ask("process", url.replace("+asyncpg", ""), code, stay)
            if failed:
                raise ProcessError(failed)
            runner.stayed.add(pid)

        names = {
            **vars(prelude),
            **self.names,
            "URL": url,
            "DSN": url.replace("+asyncpg", ""),
            "NAME": database,
            "engine": engine,
            "AsyncSessionLocal": factory,
            "step": step,
            "see": lambda value: trace.append(["saw", shown(value)]),
            "process": process,
            "kept": self.kept,
            "heard": self.heard,
        }
        exec(compile(source, "<program>", "exec"), names)
        await names["test_program"]()
        return json.loads(json.dumps(trace))  # type: ignore[no-any-return]

    async def forget(self) -> None:
        """Close what a program left open."""
        self.child.ask("forget")
        self.stayed.clear()
        left, self.kept[:] = list(self.kept), []
        self.heard.clear()
        for session in reversed(left):
            with suppress(*ERRORS, RuntimeError, AttributeError):
                closed = session.dispose() if isinstance(session, AsyncEngine) else session.close()
                if closed is not None:
                    await closed


def pid_of(session: Any) -> int:
    """The number of an open session, of asyncpg or psycopg."""
    if is_closed(session):
        return 0
    by_asyncpg = isinstance(session, asyncpg.Connection)
    return int(session.get_server_pid() if by_asyncpg else session.info.backend_pid)


def is_closed(session: Any) -> bool:
    return bool(session.is_closed() if isinstance(session, asyncpg.Connection) else session.closed)


class Other:
    """A process of this module, which answers."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "programs.run", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *message: Any) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # there will be no answer
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise Lost("the other process is gone")
        return json.loads(line)

    def ask(self, *message: Any) -> Any:
        self.tell(*message)
        return self.answer()

    def close(self) -> None:
        self.process.communicate(timeout=60)


def child() -> None:
    """Run code for `prelude.process`, and describe sessions that are like any other."""
    kept: list[dict[str, Any]] = []

    def process(dsn: str, code: str, stay: bool) -> tuple[str, int]:
        names: dict[str, Any] = {"DSN": dsn}
        try:
            exec(textwrap.dedent(code), names)
        except psycopg.Error as error:
            names["s"].close()
            return " ".join(shown_error(error)), 0
        if stay:
            kept.append(names)
        return "", pid_of(names["s"])

    def forget() -> None:
        for names in kept:
            names["s"].close()
        kept.clear()

    async def session(way: str, url: str) -> dict[str, str]:
        opened, driver = await SESSIONS[way](make(url)[1], url)
        try:
            return await describe(driver)
        finally:
            await opened.close()

    with asyncio.Runner() as loop:
        serve({"process": process, "forget": forget, "session": lambda *way: loop.run(session(*way))})


def plain(conninfo: str, url: str, golden: str, limits: str) -> None:
    """Run programs, each in a clone of the golden database, with nothing of the harness about."""
    # As in tests, a pool keeps nothing. In production, a lock would stay with its connections.
    runner = Runner(conninfo, create_async_engine=partial(create_async_engine, poolclass=NullPool))
    # Named like databases of the harness that are no concern of anybody's.
    names = (f"app_x_{os.getpid():08x}_{number}" for number in itertools.count())

    def clone() -> str:
        name = next(names)
        runner.control.execute(f"CREATE DATABASE {name} TEMPLATE {golden} STRATEGY FILE_COPY")
        for limit, value in json.loads(limits).items():
            runner.control.execute(f"ALTER DATABASE {name} SET {limit} = '{value}'")
        return name

    def drop(name: str) -> None:
        runner.roll_back_prepared(name, url_of(name).replace("+asyncpg", ""))
        runner.control.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def url_of(name: str) -> str:
        return url.replace("DATABASE", name)

    async def run(source: str, name: str) -> Trace:
        try:
            return await runner.run(source, name, *make(url_of(name)))
        finally:
            await runner.forget()

    with asyncio.Runner() as loop:
        name = clone()

        def next_() -> None:
            nonlocal name
            drop(name)
            name = clone()

        serve({"run": lambda source: loop.run(run(source, name))}, next_)
        drop(name)
    runner.close()


def serve(functions: dict[str, Callable[..., Any]], then: Callable[[], None] | None = None) -> None:
    """Call one of them for each line, until there are no more."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(functions[name](*arguments)), flush=True)
        if then:
            then()


if __name__ == "__main__":
    {"child": child, "plain": plain}[sys.argv[1]](*sys.argv[2:])
