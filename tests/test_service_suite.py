"""The rendered service's own tests, run for real on the servers that come from wheels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.once import made_once
from tests.support.project import Project
from tests.variants import DEFAULTS, LLM, MIGRATIONS, ONE_FILE, Variant

# Options of a second run of the defaults, and how many tests it passes and skips.
RUNS = {
    "again": ([], DEFAULTS.passed, LLM),
    "two workers": (["-n", "2"], DEFAULTS.passed, LLM),
    "in order": (["-p", "no:randomly"], DEFAULTS.passed, LLM),
    "integration": (["-m", "integration"], DEFAULTS.integration, LLM),
    "one file": (*ONE_FILE, 0),
}


def test_suite_is_green(variant: Variant, service: Project) -> None:
    run = service.pytest(passed=variant.passed, skipped=variant.skipped)
    assert len(re.findall(r"test_migrations\.py::\w+ PASSED", run.output)) == MIGRATIONS
    assert "Required test coverage" not in run.output, "a gate would fail runs of one file"


def test_unit_tests_are_green_and_need_no_database(variant: Variant, service: Project) -> None:
    run = service.pytest("-m", "unit", passed=variant.unit)
    assert "golden: " not in run.output


@pytest.mark.parametrize("name", RUNS)
def test_second_run_reuses_the_golden_database(name: str, warm: Project) -> None:
    options, passed, skipped = RUNS[name]
    assert warm.pytest(*options, passed=passed, skipped=skipped).golden()[1] == "reused"


@pytest.fixture
def warm(rendered: Render, shared: Path) -> Project:
    """The shared project with the default answers, once its tests have run."""
    project = rendered()
    options, passed = ONE_FILE
    made_once(shared / "warm", lambda _: project.pytest(*options, passed=passed))
    return project
