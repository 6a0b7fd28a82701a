import pytest
from litestar.testing import AsyncTestClient
from parcels.app import create_app
from parcels.db import new_session

from tests.harness import Recipe

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe():
    return Recipe(metadata="parcels.db:Base.metadata")


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def tables():
    """Are there."""


@pytest.fixture
async def session():
    async with new_session() as session:
        yield session


@pytest.fixture
async def client():
    async with AsyncTestClient(create_app()) as client:
        yield client
