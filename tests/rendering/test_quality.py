"""Rendered code as its user's tools see it: formatter, linter, type checker, `make check`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.once import locked
from tests.support.project import Project

CONCERNS = [
    "template/*.py*",
    "template/pyproject.toml.jinja",
    "template/Makefile.jinja",
    "*/harness/ruff.toml",
]

VIOLATIONS = {
    "format": ("x = {  'a':1 }\n", "would be reformatted"),
    "lint": ("import os\n", "F401"),
    "types": ('def double(n: int) -> int:\n    return "2" * n\n', "return-value"),
    "untyped": ("def double(n):\n    return n\n", "no-untyped-def"),
    "ignored": ("number: int = 1  # type: ignore\n", "unused-ignore"),
}


def test_render_passes_formatter_and_linter(combination: Project) -> None:
    combination.tool("ruff", "format", "--check", "--diff", "--no-cache", ".")
    combination.tool("ruff", "check", "--no-cache", ".")


@pytest.mark.parametrize("redis", [True, False])
@pytest.mark.parametrize("letters", [1, 30])
def test_lines_with_the_packages_name_are_formatted(
    letters: int, redis: bool, rendered: Render
) -> None:
    """The shortest and the longest name that there may be."""
    project = rendered(package_name="n" * letters, use_redis=redis)
    project.tool("ruff", "format", "--check", "--diff", "--no-cache", ".")
    project.tool("ruff", "check", "--no-cache", ".")


def test_render_passes_strict_type_checker(combination: Project, mypy_cache: Path) -> None:
    configuration = tomllib.loads((combination.path / "pyproject.toml").read_text())
    assert configuration["tool"]["mypy"]["strict"] is True
    with locked(mypy_cache):
        done = combination.tool("mypy", "--cache-dir", mypy_cache)
    checked = int(done.output.split(" source files")[0].split()[-1])
    written = [name for name, _ in combination.files() if name.endswith(".py")]
    assert checked >= len([name for name in written if not name.startswith("migrations/")])


@pytest.mark.slow
def test_check_refuses_planted_violations(project: Project, mypy_cache: Path) -> None:
    project.run("git", "init", "--quiet")
    env = {"MYPY_CACHE_DIR": str(mypy_cache)}
    with locked(mypy_cache):
        project.run("make", "check", env=env, timeout=300)
    planted = project.package / "planted.py"
    for code, reason in VIOLATIONS.values():
        planted.write_text(code)
        with locked(mypy_cache):
            done = project.run("make", "check", env=env, status=None)
        assert done.status != 0
        assert reason in done.output


@pytest.fixture
def mypy_cache(shared: Path) -> Path:
    """One cache for all variants: the libraries they share are analysed once."""
    return shared / "mypy"
