"""Cases that a rollback could not isolate, or a kept connection, each standing for its kind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.project import Project
from tests.support.tiers import first

CONCERNS = ["*/harness/isolation/*", "tests/harness/cases/*"]

CASES = Path(__file__).with_name("cases")

# The files, and how many tests each holds.
PASSED = {
    "test_by_whichever_method.py": 100,
    "test_cancelled.py": 5,
    "test_codec.py": 3,
    "test_concurrent_first_use.py": 11,
    "test_driver_connection.py": 10,
    "test_ends_with_its_transaction.py": 8,
    "test_killed_by_others.py": 4,
    "test_sequences_in_blocks.py": 6,
    "test_sessions_within_savepoints.py": 6,
    "test_swallowed_error.py": 1,
    "test_tasks_of_wider_fixtures.py": 3,
    "test_wider_fixtures.py": 3,
}

ORDERS = {
    "plain": ["-p", "no:randomly"],
    "random": ["--randomly-seed=1"],
    "two workers": ["-n", "2", "--randomly-seed=1"],
}


@pytest.fixture(scope="module")
def cases(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A service with these tests instead of its own."""
    folder = tmp_path_factory.mktemp("cases")
    project = rendered().copy_to(folder / "service")
    for examples in ("unit", "integration", "workflow"):
        shutil.rmtree(project.path / "tests" / examples)
    for path in CASES.glob("*.txt"):
        shutil.copy(path, project.path / "tests" / path.stem)
    yield project
    remove_clusters(folder)


@pytest.mark.parametrize("order", first(1, ORDERS))
def test_all_cases(cases: Project, order: str) -> None:
    cases.pytest("--no-cov", *ORDERS[order], passed=sum(PASSED.values()))


@pytest.mark.parametrize("file", first(1, PASSED))
def test_a_file_alone(cases: Project, file: str) -> None:
    cases.pytest("--no-cov", "-p", "no:randomly", f"tests/{file}", passed=PASSED[file])
