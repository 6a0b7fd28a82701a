"""Projects have markers of their own, and `unit` may be one that means something else."""

from __future__ import annotations

from tests.support.small import Small, edited

CONCERNS = ["*/harness/markers.py"]

TESTS = """\
import os

import psycopg
import pytest

URL = os.environ["DATABASE_URL"].replace("+asyncpg", "")


def count():
    with psycopg.connect(URL) as connection:
        return connection.execute("SELECT count(*) FROM customers").fetchone()


@pytest.mark.unit
def test_unit_of_their_own():
    assert count() == (5,)


@pytest.mark.pure
def test_pure():
    count()
"""


def test_the_marker_of_unit_tests_is_a_setting(small: Small) -> None:
    configuration = small.path / "pyproject.toml"
    text = configuration.read_text().replace(
        (section := "[tool.pytest.ini_options]\n"),
        f'{section}harness_unit_marker = "pure"\nmarkers = ["unit: of one class"]\n',
    )
    with edited(configuration, text):
        outcome = small.tried(TESTS)
        assert outcome.counts == {"passed": 1, "failed": 1}
        assert "UnitTestConnectedError: This test is marked pure, and connected" in outcome.output
        shown = small.tried(TESTS, "--markers").output
    assert "@pytest.mark.pure: pure logic; reaching for Postgres" in shown
    assert "@pytest.mark.unit: of one class" in shown
