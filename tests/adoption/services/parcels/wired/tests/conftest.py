import pytest
from httpx import ASGITransport, AsyncClient
from parcels.app import create_app
from parcels.db import get_engine, new_session
from sqlalchemy import text

from tests.harness import Recipe

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe():
    return Recipe(metadata="parcels.db:Base.metadata")


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
async def tables(anyio_backend):
    """The harness has made them."""


@pytest.fixture(autouse=True)
async def truncated(tables):
    yield
    async with get_engine().begin() as connection:
        await connection.execute(text("TRUNCATE parcel"))
    await get_engine().dispose()


@pytest.fixture
async def session():
    async with new_session() as session:
        yield session


@pytest.fixture
async def client():
    transport = ASGITransport(create_app())
    async with AsyncClient(transport=transport, base_url="http://parcels") as client:
        yield client
