"""The markers of tests, and what they mean to the harness."""

from __future__ import annotations

import pytest

_UNIT = "harness_unit_marker"

unit = "unit"
"""The name of the marker of tests that need no server."""

_MARKERS = {
    "integration": "uses the database, Redis or the whole service",
    "own_database": "a database whose rows no test has touched, for a test that changes the schema and the like",
    "llm": "asks a real language model; runs only where one is configured",
    "allow_leaks(reason)": "sessions and tasks that the test leaves open are no error",
}
_NEEDS_DATABASE = pytest.StashKey[bool]()


def add_option(parser: pytest.Parser) -> None:
    """Let projects have a marker `unit` of their own."""
    parser.addini(
        _UNIT,
        "Marker of tests that need no server and can't reach one. Default: unit",
        default="unit",
    )


def register(config: pytest.Config) -> None:
    """Make them known to `--strict-markers` and `--markers`."""
    global unit  # noqa: PLW0603 - one process, one configuration
    unit = config.getini(_UNIT)
    pure = "pure logic; reaching for Postgres or Redis is an error, and no server is started"
    for name, means in ({unit: pure} | _MARKERS).items():
        config.addinivalue_line("markers", f"{name}: {means}")


def needs_database(item: pytest.Item) -> bool:
    """Whether a test may use a server: any that does not say that it is a unit test."""
    known = item.stash.get(_NEEDS_DATABASE, None)
    if known is None:  # asked at each step of each test
        known = item.stash[_NEEDS_DATABASE] = item.get_closest_marker(unit) is None
    return known
