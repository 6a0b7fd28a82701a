import pytest
from clinic.web import create_app
from httpx import ASGITransport, AsyncClient

from tests.harness import Recipe

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe():
    return Recipe(metadata="clinic.models:SQLModel.metadata")


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def app():
    app = create_app()
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app):
    async with AsyncClient(transport=ASGITransport(app), base_url="http://clinic") as client:
        yield client
