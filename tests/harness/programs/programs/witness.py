"""Looks whether anything is not as it was before the first test."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from app.database import AsyncSessionLocal

from .run import Runner
from .state import SESSIONS, Content, describe


class Witness:
    """Knows what a database held that nobody had used, and what a new session is like."""

    def __init__(self, environment: Any) -> None:
        self.database = environment.database
        self.url, self.conninfo = environment.url(self.database), environment.conninfo(self.database)
        self.runner = Runner(environment.conninfo("postgres"))
        with psycopg.connect(self.conninfo, autocommit=True) as inside:
            self.golden = Content(inside)
        self.new = {way: self.runner.child.ask("session", way, self.url) for way in SESSIONS}

    def content(self) -> list[str]:
        """How what the database holds differs."""
        with psycopg.connect(self.conninfo, autocommit=True) as inside:
            return self.golden.differences(inside)

    async def sessions(self) -> list[str]:
        """How the next sessions differ from new ones: as many as are kept, one at least."""
        found, opened = [], list[Any]()
        kept = self.runner.sessions(self.database)
        for name, open_ in SESSIONS.items():
            while kept or not opened:
                session, driver = await open_(AsyncSessionLocal, self.url)
                opened.append(session)
                now, new = await describe(driver), self.new[name]
                found += [
                    f"{name}, {what}: {now.get(what)} instead of {new.get(what)}"
                    for what in now | new
                    if now.get(what) != new.get(what)
                ]
                if driver.get_server_pid() not in kept:
                    break
                kept.remove(driver.get_server_pid())
        for session in opened:
            await session.close()
        busy = self.runner.busy(self.database) & kept
        found += [f"still open is {line}" for line in self.runner.described(busy)]
        if self.runner.heard:
            found.append(f"listeners of another test still hear: {self.runner.heard}")
        return found


@pytest.mark.parametrize("number", range(40))
async def test_nothing_is_left(witness, number):
    """Between programs that are tests of their own."""
    assert not await witness.sessions()
    assert not witness.content()
