"""No test can pollute another: hostile tests between witnesses, in random order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.project import Project
from tests.support.tiers import first

CONCERNS = ["*/harness/isolation/*", "tests/harness/hostile/*"]

HOSTILE = Path(__file__).with_name("hostile") / "test_hostile.py.txt"

# What the hostile tests do shows as failures and errors of theirs; a witness never fails.
PASSED, FAILED, ERRORS = 165, 2, 8
WITNESSES = 45

SEEDS = first(1, range(1, 11))


@pytest.fixture(scope="module")
def hostile(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A service without its own tests, but with hostile ones."""
    folder = tmp_path_factory.mktemp("hostile")
    project = rendered(use_auth=False, use_assistant=False).copy_to(folder / "service")
    for examples in ("unit", "integration", "workflow"):
        shutil.rmtree(project.path / "tests" / examples)
    shutil.copy(HOSTILE, project.path / "tests" / "test_hostile.py")
    yield project
    remove_clusters(folder)


@pytest.mark.parametrize("seed", SEEDS)
def test_witnesses_see_no_pollution(hostile: Project, seed: int) -> None:
    """In one process and in two by turns."""
    workers = [] if seed % 2 else ["-n", "2"]
    options = ["--no-cov", f"--randomly-seed={seed}", *workers]
    outcome = hostile.pytest(*options, status=1, passed=PASSED, failed=FAILED, error=ERRORS)
    lines = [line for line in outcome.output.splitlines() if "test_witness" in line]
    assert sum("PASSED" in line for line in lines) == WITNESSES
    assert "the tests' database is not as the golden one" not in outcome.output


def test_prepared_statements_stay_in_their_test(hostile: Project) -> None:
    """Those of its own, and those that it takes from the connection."""
    file = "tests/test_hostile.py::"
    commands = ["PREPARE hostile AS SELECT 1", "PREPARE hostile AS SELECT 2", "DEALLOCATE ALL"]
    tests = [
        f"{file}test_witness_with_a_session[0]",
        *(f"{file}test_state_of_a_session[{command}]" for command in commands),
        f"{file}test_witness_with_a_session[1]",
    ]
    hostile.pytest("--no-cov", "-p", "no:randomly", *tests, passed=len(tests))


def test_task_of_the_last_test_is_reported(hostile: Project) -> None:
    """Though the event loop goes with that test, and cancels what still runs."""
    test = "tests/test_hostile.py::test_leaks_a_task_beside_a_session"
    outcome = hostile.pytest("--no-cov", test, status=1, passed=1, error=1)
    assert "later at" in outcome.output, "which task, and where it is"
