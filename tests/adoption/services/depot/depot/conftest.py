"""Tests share one session with the application, in a transaction that is rolled back.

The tables are there: `alembic upgrade head`.
"""

import pytest_asyncio
from httpx import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from depot.database import engine, get_session
from depot.main import app


@pytest_asyncio.fixture
async def session():
    async with engine.connect() as connection, connection.begin() as transaction:
        options = {"expire_on_commit": False, "join_transaction_mode": "create_savepoint"}
        async with AsyncSession(connection, **options) as session:
            yield session
        await transaction.rollback()
    await engine.dispose()


@pytest_asyncio.fixture
async def client(session):
    app.dependency_overrides[get_session] = lambda: session
    async with AsyncClient(transport=ASGITransport(app), base_url="http://depot") as client:
        yield client
    app.dependency_overrides.clear()
