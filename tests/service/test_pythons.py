"""The service on each Python that it supports, as far as the machine has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.command import run
from tests.support.project import install
from tests.support.small import Small
from tests.variants import DEFAULTS, LLM

CONCERNS = ["template/pyproject.toml.jinja"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
MINE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_suite_is_green(version: str, rendered: Render, tmp_path: Path) -> None:
    if version == MINE:
        pytest.skip(f"these tests run on {version}: see test_own_suite.py")
    find = [os.environ["UV"], "python", "find", "--no-python-downloads", version]
    found = run(*find, cwd=tmp_path, status=None)
    if found.status:
        pytest.skip(f"there is no Python {version} on this machine")
    python = found.output.splitlines()[-1]
    service = install(rendered(), tmp_path / "environment", python)
    run_of_it = service.pytest("--no-cov", passed=DEFAULTS.passed, skipped=LLM)
    assert f"Python {version}." in run_of_it.output


ANNOUNCED = """\
import warnings

import pytest


def announced(module):
    text = "'old' is deprecated and slated for removal in Python 3.99; use new instead"
    warnings.warn_explicit(text, DeprecationWarning, "a file", 1, module)


@pytest.mark.parametrize("module", ["library", "application", "library.app.tests"])
def test_of_a_library(module):
    announced(module)


@pytest.mark.parametrize("module", ["app", "app.models", "tests.factories"])
def test_of_ones_own(module):
    with pytest.raises(DeprecationWarning):
        announced(module)


def test_what_a_library_says_of_itself():
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("use new instead", DeprecationWarning, "a file", 1, "library")
"""


@pytest.mark.thorough
def test_what_a_newer_python_says_of_libraries_fails_no_test(small: Small) -> None:
    """LangSmith calls what 3.14 warns of, at its import. One's own code is to follow at once."""
    outcome = small.tried(ANNOUNCED)
    assert outcome.counts == {"passed": 7}, outcome.output[-6000:]
