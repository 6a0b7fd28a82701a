"""Each feature alone: its tests pass without those of the others."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.project import Project, counted, install
from tests.variants import ALONE, COMBINATIONS, FEATURES, VARIANTS, off

CONCERNS = ["template/*.jinja"]


# The least that a service has, with no feature at all.
LEAST = VARIANTS["all off"].passed


def collected(project: Project, marker: str) -> int:
    """How many tests have this marker."""
    options = ("--no-cov", "-q", "--collect-only", "-m", marker)
    done = project.tool("pytest", *options, status=None)
    assert done.status in (0, 5)  # 5: there is none
    found = re.findall(r"(\d+)(?:/\d+)? tests? collected", done.output)
    assert len(found) == (done.status == 0)
    return int(found[0]) if found else 0


@pytest.mark.parametrize("three", list(itertools.combinations(FEATURES, 3)))
def test_three_features_are_tested_with_all_their_answers(three: tuple[str, ...]) -> None:
    """Here or in test_own_suite.py."""
    tested = [off(variant.answers) for variant in VARIANTS.values()]
    tested += [off(COMBINATIONS[name]) for name in ALONE]
    together = {tuple(feature in features for feature in three) for features in tested}
    assert together == {*itertools.product((True, False), repeat=3)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_suite_is_green(name: str, rendered: Render, tmp_path: Path) -> None:
    """In an environment that holds what the combination itself depends on, and nothing else."""
    project = install(rendered(**COMBINATIONS[name]), tmp_path / "environment")
    done = project.tool("pytest", "--no-cov", timeout=600)
    counts = counted(done.output)
    assert counts.keys() <= {"passed", "skipped"}, counts
    assert counts["passed"] > LEAST
    ran = sum(counts.values())
    assert ran == collected(project, "unit") + collected(project, "integration")
    assert counts.get("skipped", 0) == collected(project, "llm")
