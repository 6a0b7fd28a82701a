"""The one exception of the harness: something that its user can act on."""

from __future__ import annotations

made: list[HarnessError] = []
"""Those made since this was last cleared. The code under test may swallow one; its test fails all the same."""


class HarnessError(Exception):
    """Says what happened, where, and what to do next. Shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        made.append(self)
