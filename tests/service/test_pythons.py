"""The service on each Python that it supports, as far as the machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.command import run
from tests.support.project import install
from tests.variants import DEFAULTS, LLM

CONCERNS = ["template/pyproject.toml.jinja"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_suite_is_green(version: str, rendered: Render, tmp_path: Path) -> None:
    find = [os.environ["UV"], "python", "find", "--no-python-downloads", version]
    found = run(*find, cwd=tmp_path, status=None)
    if found.status:
        pytest.skip(f"there is no Python {version} on this machine")
    python = found.output.splitlines()[-1]
    service = install(rendered(), tmp_path / "environment", python)
    run_of_it = service.pytest("--no-cov", passed=DEFAULTS.passed, skipped=LLM)
    assert f"Python {version}." in run_of_it.output
