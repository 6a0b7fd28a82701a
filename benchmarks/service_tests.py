"""Dropped into a rendered service: one test, many times, by each way to the database."""

import json
import os
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))


async def work(session, number):
    # Not above: a run of the unit test alone pays for no driver.
    from app.models import Customer
    from sqlalchemy import func, select

    session.add(Customer(full_name="Bench", email=f"bench-{number}@bench.example"))
    await session.commit()
    count = select(func.count()).select_from(Customer).where(Customer.full_name == "Bench")
    assert await session.scalar(count) == 1


@pytest.mark.unit
async def test_unit(number):
    assert number >= 0


@pytest.mark.integration
async def test_session(db_session, number):
    await work(db_session, number)


begun = []


@pytest.mark.integration
async def test_long_run(db_session, number):
    begun.append(time.perf_counter())
    await work(db_session, number)
    if number == int(os.environ["BENCH_TESTS"]) - 1 and "BENCH_TIMES" in os.environ:
        Path(os.environ["BENCH_TIMES"]).write_text(json.dumps(begun))


@pytest.mark.integration
async def test_request(async_client, auth_headers, number):
    body = {"full_name": "Bench", "email": f"bench-{number}@bench.example"}
    response = await async_client.post("/api/v1/customers", json=body, headers=auth_headers)
    assert response.status_code == 201


@pytest.mark.integration
@pytest.mark.own_database
async def test_own_database(db_session, number):
    await work(db_session, number)


@pytest.mark.integration
async def test_own_connection(db_engine, number):
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(db_engine) as session:
        await work(session, number)
