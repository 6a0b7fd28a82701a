"""Which tests run when: see the markers in pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

slow, thorough = pytest.mark.slow, pytest.mark.thorough


def quick(*cases: Any, of: Iterable[Any], others: pytest.MarkDecorator = thorough) -> list[Any]:
    """Parameters of a test of which these are quick, and the others are marked."""
    return [case if case in cases else _marked(case, others) for case in of]


def first(number: int, of: Iterable[Any], *, others: pytest.MarkDecorator = slow) -> list[Any]:
    """Parameters of a test of which the first are quick, and the others are marked."""
    cases = list(of)
    return [*cases[:number], *(_marked(case, others) for case in cases[number:])]


def _marked(case: Any, mark: pytest.MarkDecorator) -> Any:
    """A tuple is one case of several parameters."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)
