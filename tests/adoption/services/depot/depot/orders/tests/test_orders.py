import asyncio

import pytest
from httpx import ASGITransport, AsyncClient

from depot.database import Item, Order, engine, make_session
from depot.main import app

pytestmark = pytest.mark.asyncio


async def test_ordered(client, session):
    assert (await client.post("/orders?item=pallet&count=30")).status_code == 201
    item = await session.get(Item, "pallet")
    await session.refresh(item)
    assert item.stock == 70


async def test_not_more_than_there_are(client):
    assert (await client.post("/orders?item=pallet&count=101")).status_code == 409
    assert (await client.get("/stock/pallet")).json() == 100


async def test_of_three_at_once_two_get_theirs():
    async with make_session.begin() as session:
        session.add(Item(name="reel", stock=2))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://depot") as client:
        orders = (client.post("/orders?item=reel&count=1") for _ in range(3))
        codes = sorted([order.status_code for order in await asyncio.gather(*orders)])
    async with make_session.begin() as session:
        reel = await session.get(Item, "reel")
        for order in await session.scalars(Order.__table__.select().where(Order.item == "reel")):
            await session.delete(await session.get(Order, order))
        await session.flush()
        await session.delete(reel)
    await engine.dispose()
    assert codes == [201, 201, 409]
