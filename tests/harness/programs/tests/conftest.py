"""What the service tells the test harness, and who looks after each test."""

from collections.abc import Iterator

import pytest

from programs.witness import Witness
from tests.harness import Recipe, module
from tests.harness.harness import Harness

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe() -> Recipe:
    return Recipe(
        engine="app.database:engine",
        session="app.database:AsyncSessionLocal",
        metadata=None,
        extensions=["vector", "pg_trgm"],
        commands=[module("app.seed")],
        sources=["app"],
        seeded=["parent"],
    )


@pytest.fixture(scope="session", autouse=True)
def witness(enterprise_database_setup: Harness) -> Iterator[Witness]:
    """Made before the first test."""
    witness = Witness(enterprise_database_setup.environment)
    yield witness
    witness.runner.close()
