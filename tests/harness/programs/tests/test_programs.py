"""After each program, everything is as it was before."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

sys.path.append(os.environ["META_PACKAGES"])  # hypothesis, and what it needs

from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import seed as seeded

from app.database import AsyncSessionLocal, engine
from programs import prelude, witness
from programs.program import AUTOCOMMIT, KINDS, SERVICE, STATEMENTS, Program, alone, programs, single
from programs.run import ERRORS, Lost, Other, Trace
from programs.witness import Witness
from tests.harness.plugin import HARNESS

NUMBER = int(os.environ.get("PROGRAMS", "300"))
SEED = int(os.environ.get("PROGRAMS_SEED", "1"))
PARTS = int(os.environ.get("PROGRAMS_PARTS", "1"))  # each has so many programs, and may have a worker of its own
SEPARATE = 40 // PARTS  # are written into a file, each as a test of its own
TRIES = 3  # for programs whose end is not certain


class World:
    """Where programs run: the harness's database, and one without it."""

    def __init__(self, harness: Any, witness: Witness, loop: asyncio.AbstractEventLoop) -> None:
        self.harness, self.witness, self.loop = harness, witness, loop
        self.runner, self.database = witness.runner, witness.database
        environment = harness.environment
        self.plain = Other(
            "plain",
            environment.conninfo("postgres"),
            environment.url("DATABASE"),
            harness.worker.golden.name,
            json.dumps(environment.limits),
        )
        self.passed: dict[str, Program] = {}
        self.steps, self.statements = set[str](), set[str]()
        self.undecided = 0

    def check(self, program: Program) -> None:
        """Run it as a test, and what comes after it."""
        source = program.source()
        if source in self.passed:
            return
        try:
            problems = self.problems(program, source)
        except Exception as error:
            if self.harness.lost:
                raise Lost(program.printed()) from error
            self.heal()
            error.add_note(program.printed())
            raise
        if problems:
            self.heal()
            raise AssertionError("\n".join([*problems, "", program.printed()]))
        self.passed[source] = program

    def problems(self, program: Program, source: str) -> list[str]:
        """What is wrong with what it saw, and afterwards."""
        self.plain.tell("run", source)
        try:
            trace, problems = self.run(program, source)
        finally:
            plain = [self.plain.answer()]
        for _ in range(TRIES):
            if problems or trace in plain:
                break
            # It may see one thing or another; which, without the harness as well.
            plain += [self.plain.ask("run", source) for _ in range(TRIES)]
            trace, problems = self.run(program, source)
        else:
            problems += difference(trace, plain[0])
        self.undecided += len(plain) > 1
        self.count(program, trace)
        return problems

    def count(self, program: Program, trace: Trace) -> None:
        """Note which steps were there, and which statements succeeded."""
        failed, number = set[int](), 0
        for what, *rest in trace:
            if what == "step":
                number = rest[0]
            elif what == "raised":
                failed.add(number)
        for number, step in program.numbered().items():
            self.steps.add(step.kind)
            if number not in failed:
                self.statements |= {template for *_, template in step.statements}

    def run(self, program: Program, source: str) -> tuple[Trace, list[str]]:
        """What it saw, and what is wrong afterwards."""
        problems = []
        self.harness.before_test()
        trace = self.loop.run_until_complete(self.runner.run(source, self.database, engine, AsyncSessionLocal))
        left = self.runner.sessions(self.database, "state ~ '^idle in'")
        held = self.runner.held()
        reported = self.harness.after_test("a program", failed=False)
        for line in self.runner.described(held & self.runner.sessions(self.database)):
            problems.append(f"a session that it left is still open: {line}")
        if left and not reported:
            problems.append("a session that was left in a transaction was not reported")
        if reported and not program.leaves:
            problems += ["it left nothing open, but was told:", *reported]
        self.runner.heard.clear()
        self.harness.before_test()
        problems += self.look()
        self.loop.run_until_complete(self.runner.forget())
        problems += self.harness.after_test("what comes after it", failed=False)
        return trace, problems

    def look(self) -> list[str]:
        """What a next test would see that it should not."""
        try:
            problems = self.loop.run_until_complete(self.witness.sessions())
        except ERRORS as error:
            problems = [f"the next session: {error!r}"]
        return problems + self.witness.content()

    def heal(self) -> None:
        """Have a database that no program has touched, whatever is wrong with the harness."""
        self.loop.run_until_complete(self.runner.forget())
        self.runner.roll_back_prepared(self.database, self.witness.conninfo)
        self.harness.before_test()
        self.runner.control.execute(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
        self.harness.after_test("healing", failed=False)
        self.harness.before_test()
        self.look()  # and so the next program finds sessions that are kept, as most do
        self.harness.after_test("healing", failed=False)


def difference(trace: Trace, expected: Trace) -> list[str]:
    """Where they part."""
    pairs = itertools.zip_longest(trace, expected, fillvalue="nothing")
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    before, saw, instead = trace[max(0, same - 3) : same], trace[same:][:3], expected[same:][:3]
    return [f"after {before} it saw", f"  {saw}", f"instead of\n  {instead}"]


@pytest_asyncio.fixture(scope="session")
def loop() -> Any:
    """The session's, on which async tests run."""
    return asyncio.get_event_loop()


@pytest.fixture(scope="session")
def world(
    request: pytest.FixtureRequest,
    witness: Witness,
    loop: asyncio.AbstractEventLoop,
) -> Iterator[World]:
    world = World(request.config.stash[HARNESS], witness, loop)
    yield world
    world.plain.close()


def note_run(what: str) -> None:
    """Tell whoever started all the workers what was run."""
    with Path(__file__).with_name("ran.txt").open("a") as ran:
        print(what, file=ran)


def test_each_statement_alone(world: World) -> None:
    """By the service; where that can't be, by somebody who begins no transaction."""
    succeeded, found = set[str](), list[Exception]()
    for chosen in alone():
        world.statements.clear()
        for way in SERVICE, AUTOCOMMIT:
            if not world.statements:
                try:
                    world.check(single(way, chosen))
                except AssertionError as error:
                    found.append(error)
        if world.statements:
            succeeded.add(chosen[1])
    if found:
        raise ExceptionGroup(f"{len(found)} statements", found)
    assert {kind for _, kind, _ in alone()} == succeeded
    note_run(f"{len(world.passed)} statements alone")


def check_seed(world: World, number: int) -> None:
    """Ten programs, the first of which is always the same: it is the smallest."""

    @seeded(number)
    @settings(
        max_examples=10,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def check(program: Program) -> None:
        note(f"PROGRAMS_SEED={number}")
        if len(world.passed) < NUMBER:
            world.check(program)

    check()


@pytest.mark.parametrize("part", range(PARTS))
def test_programs(part: int, world: World) -> None:
    """From many seeds: Hypothesis draws the first ten afresh, and varies them from then on."""
    world.passed.clear()
    world.statements.clear()
    world.steps.clear()
    seeds = itertools.count(SEED + part * NUMBER)
    while len(world.passed) < NUMBER:
        check_seed(world, next(seeds))
    missed = [f"step: {kind}" for kind in KINDS - world.steps]
    missed += [f"statement: {template}" for template in STATEMENTS - world.statements]
    Path(__file__).with_name(f"missed_{part}.txt").write_text("\n".join(sorted(missed)))
    assert world.undecided <= max(1, NUMBER / 100)
    some = list(world.passed.values())[:: max(1, NUMBER // SEPARATE)][:SEPARATE]
    sources = [program.source(f"test_program_{number}") for number, program in enumerate(some)]
    sources.append(inspect.getsource(witness.test_nothing_is_left))
    text = "\n\n".join([inspect.getsource(prelude), *sources])
    Path(__file__).with_name(f"test_separate_{part}.py").write_text(text)
    note_run(f"{len(world.passed)} programs")
