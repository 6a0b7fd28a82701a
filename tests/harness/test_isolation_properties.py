"""No program can leave anything, or see the harness: random ones, run in a service of their own.

`programs/` is that service, and what makes, runs and prints the programs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.project import Project
from tests.support.small import replace
from tests.variants import ALL_OFF

CONCERNS = ["*/harness/isolation/*", "tests/harness/programs/*"]

SERVICE = Path(__file__).with_name("programs")

ALONE, PROGRAMS = 276, 200
FEW = 40  # with `--changed`, whose answer is wanted soon
PARTS = 2  # at a time: half of a program's time, somebody waits
MANY, WORKERS = int(os.environ.get("PROGRAMS", "1000")), 4
ENOUGH = 10_000  # for each statement to be among them, and to succeed
# What takes another statement before it, in the same session: hardly a program has both.
SECOND = {
    *("EXECUTE mine", "FETCH {id} FROM held", "RELEASE s", "ROLLBACK TO s"),
    *("DROP TABLE incoming", "INSERT INTO incoming VALUES ({id})"),
}
SEPARATE, WITNESSES = 40, 40  # of them, each as a test of its own, and between them in each part

# What could be overlooked: a file, what stands there, what instead, which tests find it soon, and
# what then shows.
PUT_BACK, CHANGES, STATEMENTS = (
    f"isolation/{name}.py" for name in ("putback", "changes", "statements")
)
FAULTS = {
    "some tables": (
        PUT_BACK,
        "if after != before:",
        "if after != before and oid % 2:",
        "not alone",
        r"public\.\w+: [+-] ",
    ),
    "sequences": (
        PUT_BACK,
        "for oid in sorted(now.sequences)]",
        "for oid in ()]",
        "not alone",
        r": \+ \(-?\d+,[tf]\)",
    ),
    "the schema": (
        PUT_BACK,
        "changes.read_catalogs(self.connection) != self._schema:",
        "() != ():",
        "not alone",
        r'(?:pg_catalog|public)\.\w+: [+-] |relation "public\.\w+" does not exist',
    ),
    "settings of the database": (
        CHANGES,
        "setdatabase IN (0, d.oid)",
        "setdatabase IN (0)",
        "alone",
        r"its settings: \+ ",
    ),
    "settings of a session": (
        STATEMENTS,
        r"(?:begin|commit|",
        r"(?:set|begin|commit|",
        "alone",
        "a session of the service, (?:setting|placeholders)",
    ),
    "settings behind a name": (
        STATEMENTS,
        "if definition and self._has(definition)]",
        "if () != ()]",
        "alone",
        "a session of the service, placeholders",
    ),
}


@pytest.fixture
def programs(rendered: Render, python: Path, tmp_path: Path) -> Iterator[Project]:
    """The service, with the harness."""
    path = tmp_path / "programs"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SERVICE, path, ignore=leave)
    shutil.copytree(
        rendered(**ALL_OFF).path / "tests/harness", path / "tests/harness", ignore=leave
    )
    yield Project(path, {}, python)
    remove_clusters(tmp_path)


def options(
    number: int, *, parts: int = 1, seed: int = 1
) -> tuple[tuple[str, ...], dict[str, str]]:
    """How pytest is called to run so many programs in all, and in what environment."""
    env = {
        "PROGRAMS": str(number // parts),
        "PROGRAMS_PARTS": str(parts),
        "PROGRAMS_SEED": str(seed),
        "META_PACKAGES": str(Path(hypothesis.__file__).parents[1]),
    }
    workers = ("-n", str(parts)) if parts > 1 else ()
    return ("-p", "no:randomly", "tests/test_programs.py", *workers), env


def ran(programs: Project) -> list[str]:
    """What was run of statements and programs."""
    return sorted((programs.path / "tests" / "ran.txt").read_text().splitlines())


def test_programs_leave_nothing_and_see_nothing(
    programs: Project, request: pytest.FixtureRequest
) -> None:
    """One after the other in two processes; then some as they are printed, in random order."""
    number = PROGRAMS if request.config.option.changed is None else FEW
    words, env = options(number, parts=PARTS)
    programs.pytest(*words, "-k", "not alone", env=env, timeout=1800, passed=PARTS)
    assert ran(programs) == [f"{number // PARTS} programs"] * PARTS
    assert number < PROGRAMS or not missed(programs, "step")
    files = [f"tests/test_separate_{part}.py" for part in range(PARTS)]
    passed = SEPARATE + PARTS * WITNESSES
    programs.pytest(*files, "--randomly-seed=1", env=env, passed=passed)


def missed(programs: Project, kind: str) -> set[str]:
    """Of steps, those that no program had; of statements, those that succeeded in none."""
    files = (programs.path / "tests").glob("missed_*.txt")
    lines = set.intersection(*(set(file.read_text().splitlines()) for file in files))
    start = f"{kind}: "
    return {line.removeprefix(start) for line in lines if line.startswith(start)}


@pytest.mark.slow
def test_each_statement_alone_leaves_nothing(programs: Project) -> None:
    """Whatever programs are made of."""
    words, env = options(0)
    programs.pytest(*words, "-k", "alone", env=env, timeout=1800, passed=1)
    assert ran(programs) == [f"{ALONE} statements alone"]


@pytest.mark.slow
def test_many_programs(programs: Project) -> None:
    """By more workers than there are processors: some wait for what a program leaves.

    As many as PROGRAMS says.
    """
    words, env = options(MANY, parts=WORKERS, seed=MANY)
    programs.pytest(*words, "-k", "not alone", env=env, timeout=7200, passed=WORKERS)
    assert ran(programs) == [f"{MANY // WORKERS} programs"] * WORKERS
    assert not missed(programs, "step")
    assert MANY < ENOUGH or missed(programs, "statement") <= SECOND


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(programs: Project, fault: str) -> None:
    """And is shown by a program of a few lines."""
    file, old, new, found_by, shows = FAULTS[fault]
    replace(programs.path / "tests" / "harness" / file, old, new)
    words, env = options(PROGRAMS)
    output = programs.tool(
        "pytest", "-x", *words, "-k", found_by, env=env, timeout=1800, status=1
    ).output
    assert re.search(shows, output)
    text = re.sub(r"^(?:E| *\|) *", "", output, flags=re.MULTILINE)  # pytest's margin, or a group's
    (program,) = re.findall(r"^async def test_program\(\):\n(?:.+\n)+", text, re.MULTILINE)[-1:]
    assert program.count("step(") < 10
