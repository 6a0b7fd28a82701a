import pytest
from httpx import ASGITransport, AsyncClient
from parcels.app import create_app
from parcels.db import Base, get_engine, new_session
from sqlalchemy import text


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
async def tables(anyio_backend):
    async with get_engine().begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    await get_engine().dispose()


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
