"""The rendered service's own tests, run for real on the servers that come from wheels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.once import made_once
from tests.support.project import Project
from tests.variants import ONE_FILE, VARIANTS, Variant

DEFAULTS = VARIANTS["defaults"]

# Options of a second run of the defaults, and how many tests it passes.
RUNS = {
    "again": ([], DEFAULTS.passed),
    "two workers": (["-n", "2"], DEFAULTS.passed),
    "in order": (["-p", "no:randomly"], DEFAULTS.passed),
    "integration": (["-m", "integration"], DEFAULTS.integration),
    "one file": ONE_FILE,
}


def test_suite_is_green(variant: Variant, service: Project) -> None:
    outcome = service.pytest(passed=variant.passed)
    migrations = re.findall(r"test_migrations\.py::\w+ PASSED", outcome.output)
    assert len(migrations) == variant.migrations
    assert "Required test coverage" not in outcome.output, "a gate would fail runs of one file"


def test_unit_tests_are_green_and_need_no_database(variant: Variant, service: Project) -> None:
    outcome = service.pytest("-m", "unit", passed=variant.unit)
    assert "golden: " not in outcome.output


@pytest.mark.parametrize("run", RUNS)
def test_second_run_reuses_the_golden_database(run: str, warm: Project) -> None:
    options, passed = RUNS[run]
    assert warm.pytest(*options, passed=passed).golden()[1] == "reused"


@pytest.fixture
def warm(rendered: Render, shared: Path) -> Project:
    """The shared project with the default answers, once its tests have run."""
    project = rendered()
    options, passed = ONE_FILE
    made_once(shared / "warm", lambda _: project.pytest(*options, passed=passed))
    return project
