import asyncio

import pytest

EMMA = {"isbn": "9780141439587", "title": "Emma"}


@pytest.mark.parametrize("time", ["first", "second"])
async def test_add(async_client, redis_client, time):
    assert (await async_client.post("/books", json=EMMA)).status_code == 201
    assert (await async_client.get("/books")).json()[1] == "Emma"
    assert await redis_client.get("added") == "1"


async def test_twice(async_client):
    assert (await async_client.post("/books", json=EMMA)).status_code == 201
    assert (await async_client.post("/books", json=EMMA)).status_code == 409
    assert len((await async_client.get("/books")).json()) == 3


@pytest.mark.own_database
async def test_at_once(async_client):
    both = await asyncio.gather(*(async_client.post("/books", json=EMMA) for _ in range(2)))
    assert sorted(response.status_code for response in both) == [201, 409]
