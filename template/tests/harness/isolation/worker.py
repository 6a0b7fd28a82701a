"""The database that one worker's tests see: put back after each test, or replaced by a clone."""

from __future__ import annotations

import functools
import time
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from ..environment import Environment
from ..errors import HarnessError
from ..golden import build as golden
from ..golden import databases
from ..golden.build import Golden, Say
from ..golden.databases import Connection
from ..recipe import Recipe
from ..summary import Summary
from ..waiting import polls
from . import changes, content
from .changes import Reading
from .clones import Clones
from .content import Marks
from .putback import Level, PutBack, is_superuser
from .statements import Names

if TYPE_CHECKING:
    from .connections import KeptConnections

_TRIES = 5
_GRACE = 0.5  # seconds that a session has to leave after its test; a client closes before its backend ends
_KEPT_DATABASES = 5  # of failing tests, in one run
_SHOWN = 10  # sessions that a test left, of perhaps hundreds
_LOCALITY = 20  # tests for which a spare is kept ready after a database was replaced


@dataclass
class Left:
    """What a test left behind.

    Attributes:
        sessions: that it left open, and what else `databases.let_go()` found, a line each.
        shared: what was made for the whole server meanwhile, which nobody takes away.
        others: whether somebody else was connected to the server, and may have made that.
        kept: the database's name, where it was kept for the user.
        ended: how many sessions of wider fixtures ended with the database, which was replaced.
    """

    sessions: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    others: bool = False
    kept: str | None = None
    ended: int = 0


@dataclass
class Stored:
    """What the set-up of a wider fixture left: sessions, and what is put back to since."""

    sessions: set[int] = field(default_factory=set)
    level: Level | None = None

    def __bool__(self) -> bool:
        return bool(self.sessions or self.level)


class WorkerDatabase:
    """The worker's database: `open()`, then `settle()` after each test, then `close()`."""

    def __init__(
        self,
        environment: Environment,
        connection: Connection,
        recipe: Recipe,
        say: Say,
        kept: KeptConnections | None,
    ) -> None:
        self.golden: Golden
        self.summary = Summary()
        self._environment = environment
        self._connection = connection
        self._recipe = recipe
        self._say = say
        self._kept = kept
        self._clones = Clones(environment, connection, self.summary, self._clone)
        self._levels: list[Level] = []
        self._putback: PutBack
        self._shared = 0
        self._shared_objects: set[str] = set()
        # Sessions that wider fixtures hold, and when each was last active, where that is known.
        self._wide: dict[int, str | None] = {}
        self._since_replaced = _LOCALITY
        self._clone_seconds = 0.0

    # --- begin and end ------------------------------------------------------------------------

    def open(self) -> None:
        """Make the database and verify it.

        A clone that differs from what was published means a golden database that was tampered
        with: it is dropped and built once more.

        Raises:
            HarnessError: the golden database can't be built, or its clones differ again.
        """
        self.golden = golden.ensure(self._environment, self._connection, self._recipe, self._say)
        if wrong := self._clone_and_read():
            self._clones.drop(self._environment.database)
            golden.discard(self._connection, self.golden, self._recipe, self._say)
            self.golden = golden.ensure(
                self._environment, self._connection, self._recipe, self._say
            )
            if again := self._clone_and_read():
                raise HarnessError(
                    "A clone of the golden database does not hold what was published, twice: "
                    + "; ".join(again)
                )
            story = f"{self.golden.story.partition(':')[0]}: the one there was damaged ({'; '.join(wrong)})"
            self.golden = Golden(self.golden.name, self.golden.digest, story)
        self._shared_objects = changes.on_the_server(self._connection)
        self._begin(self._clones.look())

    def _clone_and_read(self) -> list[str]:
        """Make the database, and read what tests are put back to. Returns how it is not as published."""
        try:
            begun = time.perf_counter()
            self._clones.make(self._connection, self._environment.database)
            self._clone_seconds = time.perf_counter() - begun
            with self._connect() as inside:
                if wrong := golden.verify(inside, self.golden):
                    return wrong
                self._levels = [self._read_level(inside)]
        except HarnessError as error:  # it lets nobody in
            return [str(error)]
        except psycopg.Error as error:
            if not databases.tells_of_damage(error):
                raise
            return [str(error).strip()]
        return []

    def use(self, connection: Connection) -> None:
        """Use another connection to the maintenance database: somebody has ended the last one."""
        self._connection = connection
        self._clones.use(connection)

    def _connect(self) -> Connection:
        return databases.connect(self._environment, self._environment.database)

    def _clone(self, connection: Connection, name: str) -> None:
        """Make a database that holds what tests start from, or the nearest to it that there is."""
        template = next((lv.template for lv in reversed(self._levels) if lv.template), None)
        if template is not None:
            databases.create(connection, name, template)
            return
        try:
            databases.create(connection, name, self.golden.name)
        except (psycopg.errors.InvalidCatalogName, psycopg.errors.ObjectInUse):
            # Dropped since, by a run with newer sources, or by hand: it comes back. Or entered.
            self.golden = golden.ensure(self._environment, connection, self._recipe, self._say)
            databases.disconnect(connection, self.golden.name)
            databases.create(connection, name, self.golden.name)

    def _begin(self, fresh: changes.Fresh) -> None:
        self._putback = PutBack(self._connect, fresh, self._levels)
        if self._kept is not None:
            self._kept.names = self._levels[-1].names
        self._shared = fresh.shared
        self._wide = {}

    def verify(self) -> list[str]:
        """How the database differs from what was published; empty when it does not."""
        for _ in range(_TRIES):
            with suppress(psycopg.OperationalError, HarnessError):  # somebody ended our session
                return golden.verify(self._putback.connection, self.golden)
            self._putback.close()
        return golden.verify(self._putback.connection, self.golden)

    def close(self) -> None:
        """Drop what belongs to this worker, but for what was kept.

        Raises:
            HarnessError: somebody else is connected and can't be disconnected; names them.
        """
        self._putback.close()
        self._clones.close()

    @property
    def way(self) -> str:
        """How a database becomes again what it was, for the header."""
        clone = f"a clone ({self._clone_seconds * 1000:.0f} ms to make)"
        if is_superuser(self._connection):
            return f"rows are put back; where more changed, {clone}"
        return (
            f"rows that were added are put back; where more changed, {clone}: "
            f"{self._connection.info.user} is no superuser, for whom triggers and foreign keys could rest"
        )

    # --- around a test ------------------------------------------------------------------------

    def prefetch(self, spares: int) -> None:
        """A test is about to run. It, and those after it, will want so many fresh databases."""
        recently = self._since_replaced < _LOCALITY
        self._clones.prefetch(max(spares, int(recently)))

    @property
    def has_open_sessions(self) -> bool:
        """Whether a wider fixture holds sessions, which write without connecting."""
        return bool(self._wide)

    def describe_open_sessions(self) -> list[str]:
        """What others have open in the database at this moment, a line each."""
        found = changes.sessions(self._connection, self._putback.oid)
        return databases.describe_sessions(self._connection, self._not_ours(found.keys()))

    def renew(self) -> None:
        """Have a database whose golden rows no test has touched, whatever was put back."""
        if self._putback.rewritten:
            self._replace()

    def settle(self, *, keep: bool = False) -> Left:
        """After a test: end what it left open, and put back what it changed.

        Args:
            keep: leave the database to the user, if it was changed and there is room.

        Raises:
            HarnessError: it could be neither put back nor replaced.
        """
        self._since_replaced += 1
        now = self._read(repeat=not keep)
        left = Left()
        left.sessions, now = self._end_sessions(now)
        if now is None or now.holds:
            left.sessions += databases.let_go(self._connection, self._environment.database)
        if self._kept is not None and self._kept.uncounted:
            now = None
        if now is not None and now.shared != self._shared:
            left.shared = self._look_at_server(now)
            left.others = bool(left.shared) and databases.has_others(
                self._connection, self._environment
            )
        unseen = self._unseen(now)
        if unseen is None:
            now = None
        elif now is not None and not unseen and self._putback.is_unchanged(now):
            self.summary.put_back += self._putback.repeated
            return left
        held = len(self._wide)
        left.kept = self._keep() if keep and not held else None
        if left.kept is not None:
            return left
        if now is not None and self._putback.put_back(now, unseen or (), counted=not self._wide):
            self.summary.put_back += 1
        else:
            left.ended = held
            self._replace()
        return left

    def _keep(self) -> str | None:
        """Leave the database to the user, if there is room for one more. Returns its name."""
        with databases.keeping(self._connection, self._environment.run) as kept:
            return self._replace(keep=True) if kept < _KEPT_DATABASES else None

    def _read(self, *, repeat: bool = False) -> Reading | None:
        """What Postgres has counted; None where the database does not answer as it should."""
        try:
            return self._putback.read(repeat=repeat)
        except (psycopg.Error, HarnessError):
            self._putback.close()
            # Who ended one of our sessions has perhaps ended all.
            self._connection.execute("SELECT")
            return None

    def _others(self, sessions: Set[int]) -> set[int]:
        """Sessions that are neither ours, nor kept, nor a wider fixture's."""
        return self._not_ours(sessions) - self._wide.keys()

    def _not_ours(self, sessions: Set[int]) -> set[int]:
        return set(
            sessions - {self._putback.process} - (self._kept.processes if self._kept else set())
        )

    def _staying(self, now: Reading | None) -> tuple[set[int], Reading | None]:
        """Wait a moment for sessions to leave.

        Returns:
            Those that don't; what Postgres has counted with those that did.
        """
        oid = self._putback.oid
        found = now.sessions if now is not None else changes.sessions(self._connection, oid)
        others = self._others(found.keys())
        if not others:
            return others, now
        for _ in polls(_GRACE):
            others = self._others(changes.sessions(self._connection, oid).keys())
            if not others:
                break
        return others, self._read()

    def _end_sessions(self, now: Reading | None) -> tuple[list[str], Reading | None]:
        """Wait a moment for sessions to leave, end those that don't, and read again.

        Returns:
            A line for each that was left open; what Postgres has counted with all of them.
        """
        others, now = self._staying(now)
        if not others:
            return [], now
        lines = databases.describe_sessions(self._connection, others)
        self.summary.leaks += len(lines)
        databases.terminate(
            self._connection,
            self._environment.database,
            lambda: others & changes.sessions(self._connection, self._putback.oid).keys(),
        )
        more = [f"  … and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        return lines[:_SHOWN] + more, self._read()

    def _unseen(self, now: Reading | None) -> set[int] | None:
        """Tables that a wider fixture's session changed in this test: it counts when it likes.

        Returns:
            None where it changed more than rows.
        """
        if now is None or not self._wide:
            return set()
        # None where the server tracks no activities, or shows them to others: perhaps it was.
        used = any(a is None or now.sessions.get(p, a) != a for p, a in self._wide.items())
        still = self._not_ours(self._wide.keys()) & now.sessions.keys()
        self._wide = {process: now.sessions[process] for process in still}
        return self._putback.differing() if used else set()

    def _look_at_server(self, now: Reading) -> list[str]:
        found = changes.on_the_server(self._connection)
        new, self._shared_objects, self._shared = found - self._shared_objects, found, now.shared
        return sorted(new)

    def on_the_server(self) -> set[str]:
        """What belongs to the whole server at present."""
        return changes.on_the_server(self._connection)

    def _replace(self, *, keep: bool = False) -> str:
        """Put a clone in the database's place. Returns the name that the old one has now."""
        self._putback.close()
        if self._kept is not None:
            self._kept.discard()
        old, fresh = self._clones.replace(keep=keep)
        self._begin(fresh)
        self._since_replaced = 0
        own: set[int] = set()
        for level in self._levels[1:]:
            own = set(level.own) if level.template else own | set(level.own)
        if own and not self._putback.rewrite(own):
            raise HarnessError("What a wider fixture stored could not be stored in a new database.")
        return old

    # --- around a fixture that is wider than a test ---------------------------------------------

    def look(self) -> Reading | None:
        """Before the set-up of a wider fixture, in the midst of a test: for `push()`."""
        _, now = self._staying(self._read())
        return now

    def push(self, fixture: str, before: Reading | None) -> Stored:
        """After the set-up of a wider fixture: what it changed becomes what is put back to.

        Args:
            fixture: its name, for messages.
            before: what a test had done before it asked for the fixture; None where it had not begun.

        Returns:
            What `pop()` is to be told.

        Raises:
            HarnessError: it changed more than rows, and holds a session open; or the test had changed
                something, too.
        """
        of_test = before.sessions if before is not None else {}
        now = self._read()
        held: set[int] = set()
        if now is None or self._others(now.sessions.keys()) - of_test.keys():
            held, now = self._staying(now)
        if now is None:
            raise HarnessError(f"The fixture {fixture} left a database that can't be read.")
        stored = Stored(sessions=(held - of_test.keys()) & now.sessions.keys())
        self._wide |= {process: now.sessions[process] for process in stored.sessions}
        unseen = self._putback.differing() if self._wide else set()
        if unseen == set() and self._putback.is_unchanged(now):
            return stored
        if before is not None and not self._putback.is_unchanged(before):
            if unseen == set() and now.is_as(before):
                return stored
            raise HarnessError(
                f"The fixture {fixture} stores something for all tests of its scope, but was asked for in the midst "
                "of a test that had changed the database before. Ask for it in the test's signature."
            )
        changed = self._putback.changed(now)
        if changed is not None:
            changed = None if unseen is None else changed | unseen
        stored.level = self._new_level(fixture, changed, now)
        return stored

    def _new_level(self, fixture: str, changed: set[int] | None, now: Reading) -> Level:
        inside = self._putback.connection
        own = content.read(inside, changed) if changed is not None else {}
        open_ = self._not_ours(now.sessions.keys())
        if (
            changed is not None
            and all(table.rows is not None for table in own.values())
            and is_superuser(inside)
            and (open_ or not any(t.reacts for t in own.values()))  # to rows that are stored again
        ):
            sequences = {s.oid: s for s in changes.read_sequences(inside)}
            tables = {**self._levels[-1].tables, **own}
            below = self._levels[-1]
            level = Level(tables, sequences, below.names, below.marks, own=changed, fixture=fixture)
            self._levels.append(level)
            self._putback.accept(now)
            return level
        if open_:
            who = "\n".join(databases.describe_sessions(self._connection, open_))
            what = "changed more than rows of small tables"
            if not is_superuser(inside):
                what = f"stored something, and {inside.info.user} is no superuser"
            raise HarnessError(
                f"The fixture {fixture} {what}: the database that its tests start from is to be copied, but "
                f"sessions of it are open. Close them before the fixture yields:\n{who}"
            )
        level = self._read_level(inside)
        level.fixture, level.template = fixture, self._clones.new_name("t")
        self._putback.close()
        if self._kept is not None:
            self._kept.discard()
        databases.disconnect(self._connection, self._environment.database)
        databases.create(self._connection, level.template, self._environment.database)
        self._levels.append(level)
        self._clones.forget_spares()
        self._replace()
        return level

    def pop(self, stored: Stored) -> list[str]:
        """After the tear-down of a wider fixture: what it stored goes, and what it left open.

        Args:
            stored: what `push()` returned.

        Returns:
            A line for each session that it left open.

        Raises:
            HarnessError: fixtures that were set up later are still there, and what they stored can't be told
                from this one's. It goes, too.
        """
        for process in stored.sessions:
            self._wide.pop(process, None)
        gone = stored.level
        if gone is None or gone not in self._levels:
            return self.settle().sessions
        left, now = self._end_sessions(self._read())
        at = self._levels.index(gone)
        below, above = self._levels[at - 1], self._levels[at + 1 :]
        told_apart = all(level.take_out(gone, below) for level in above)
        self._levels[at:] = above if told_apart else []
        removed = [gone] if told_apart else [gone, *above]
        templates = [level.template for level in removed if level.template is not None]
        if templates:
            self._clones.forget_spares()
        if templates or not told_apart or now is None or not self._putback.rewrite(gone.own):
            self._replace()
        for name in templates:
            self._clones.drop(name)
        if not told_apart:
            others = ", ".join(level.fixture for level in above)
            raise HarnessError(
                f"The fixture {gone.fixture} ends before {others}, of a wider scope but asked for later, and what they "
                f"stored can't be told apart: it went with it. Let {gone.fixture} ask for the wider one."
            )
        return left

    def _read_level(self, inside: Connection) -> Level:
        """What a database holds at present."""
        sequences = {s.oid: s for s in changes.read_sequences(inside)}
        marks = functools.cache(self._read_marks)
        return Level(content.read(inside), sequences, Names(inside), marks)

    def _read_marks(self) -> Marks:
        """From a clone that is made for it: a test has perhaps written to the database by now."""
        name = self._clones.new_name("s")
        self._clone(self._connection, name)
        try:
            with databases.connect(self._environment, name) as inside:
                return content.marks(inside, self._levels[-1].tables.values())
        finally:
            self._clones.drop(name)
