"""The tests that the founding document prints run unchanged in a rendered service.

`seed/` holds them as printed there, with the indentation that print took away.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.project import Project

CONCERNS = ["template/*use_assistant*", "tests/service/seed/*"]

SEED = Path(__file__).with_name("seed")

# The tests of each file.
PASSED = {
    "test_compliance_checker.py": 2,
    "test_human_agent.py": 2,
    "test_full_workflow1.py": 1,
    "test_examples.py": 2,
}


@pytest.fixture
def dropped_in(project: Project) -> Project:
    """A service with the default answers and the document's tests."""
    for name in PASSED:
        (project.path / "tests" / name).write_text((SEED / f"{name}.txt").read_text())
    return project


@pytest.mark.slow
def test_each_file_alone(dropped_in: Project) -> None:
    for name, passed in PASSED.items():
        dropped_in.pytest("--no-cov", f"tests/{name}", passed=passed)


@pytest.mark.thorough
def test_together_in_random_order_and_in_parallel(dropped_in: Project) -> None:
    files = [f"tests/{name}" for name in PASSED]
    dropped_in.pytest("--no-cov", *files, "-n", "2", passed=sum(PASSED.values()))
