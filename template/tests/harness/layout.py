"""Where the harness lies in its project: in `tests/`, or in another package of tests."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
"""The folder that holds `harness/`: that of the tests."""

NAME = __name__.rpartition(".")[0]
"""By which the harness is imported: `tests.harness`, where nobody wants it elsewhere."""

_MARKS = ("pyproject.toml", ".copier-answers*.yml", ".git")


def _root(tests: Path) -> Path:
    """The nearest folder around the tests that has a pyproject.toml, Copier's answers or a git repository."""
    for folder in tests.parents:
        if any(any(folder.glob(name)) for name in _MARKS):
            return folder
    return tests.parent


ROOT = _root(TESTS)
"""The project. Its commands run there, and the paths of a recipe begin there."""


def of_tests(name: str) -> str:
    """The path of a file beside the harness, from the project's root: `tests/conftest.py`."""
    return Path(os.path.relpath(TESTS, ROOT), name).as_posix()


HARNESS = of_tests("harness")
CONFTEST = of_tests("conftest.py")
PACKAGE = of_tests("__init__.py")
