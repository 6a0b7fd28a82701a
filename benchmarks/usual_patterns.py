"""Run outside the service: the same test by the usual patterns, each as short as it gets.

The tables are the service's, in the database that BENCH_URL names.
"""

import os
from itertools import count

import asyncpg
import pytest
import pytest_asyncio
from app.models import Customer
from sqlalchemy import func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

URL = make_url(os.environ["BENCH_URL"])
pytestmark = pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
names = (f"clone_{number}" for number in count())


def dsn(database):
    url = URL.set(drivername="postgresql", database=database)
    return url.render_as_string(hide_password=False)


async def work(session, number):
    session.add(Customer(full_name="Bench", email=f"bench-{number}@bench.example"))
    await session.commit()
    found = select(func.count()).select_from(Customer).where(Customer.full_name == "Bench")
    assert await session.scalar(found) == 1


@pytest_asyncio.fixture(scope="session", autouse=True)
async def tables():
    engine = create_async_engine(URL, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
        await connection.run_sync(Customer.metadata.create_all)
    await engine.dispose()


async def rolled_back(engine):
    async with engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        await transaction.rollback()


@pytest_asyncio.fixture
async def on_an_engine_of_its_own():
    engine = create_async_engine(URL, poolclass=NullPool)
    async for session in rolled_back(engine):
        yield session
    await engine.dispose()


async def test_engine(on_an_engine_of_its_own, number):
    await work(on_an_engine_of_its_own, number)


@pytest_asyncio.fixture(scope="session")
async def pooled():
    engine = create_async_engine(URL)
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture
async def on_a_pool(pooled):
    async for session in rolled_back(pooled):
        yield session


async def test_savepoint(on_a_pool, number):
    await work(on_a_pool, number)


@pytest_asyncio.fixture
async def in_a_clone():
    name = next(names)
    server = await asyncpg.connect(dsn("postgres"))
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {URL.database} STRATEGY FILE_COPY")
    engine = create_async_engine(URL.set(database=name), poolclass=NullPool)
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


async def test_clone(in_a_clone, number):
    await work(in_a_clone, number)
