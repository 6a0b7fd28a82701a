"""The one exception of the harness: something that its user can act on."""

from __future__ import annotations


class HarnessError(Exception):
    """Says what happened, where, and what to do next. Shown without a traceback."""
