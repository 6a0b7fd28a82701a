import pytest_asyncio
from httpx import ASGITransport, AsyncClient

from tests.harness import Recipe, script
from tests.harness.lifespan import running

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe() -> Recipe:
    return Recipe(
        session="store:Session",
        metadata="store:Model.metadata",
        commands=[script("load_books.py")],
        sources=["load_books.py", "books.csv"],
        seeded=["book"],
    )


@pytest_asyncio.fixture
async def async_client(db_session):
    from server import app

    async with (
        running(app) as application,
        AsyncClient(transport=ASGITransport(application), base_url="http://test") as client,
    ):
        yield client
