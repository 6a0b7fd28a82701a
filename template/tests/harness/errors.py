"""The one exception of the harness: something that its user can act on."""

from __future__ import annotations

ANOTHER_SERVER = "name a server: TEST_DATABASE_URL for tests, DATABASE_URL for the service"


class HarnessError(Exception):
    """Says what happened, where, and what to do next. Shown without a traceback."""
