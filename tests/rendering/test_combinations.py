"""Each combination of features that test_own_suite.py does not run: its tests pass, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.project import Project, counted, install
from tests.variants import COMBINATIONS, FEATURES, OTHERS, VARIANTS

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


def test_variants_have_one_feature_off_each_or_none_or_all() -> None:
    """The others are all the rest."""
    number = len(FEATURES)
    assert len(OTHERS) == 2**number - (number + 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
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
