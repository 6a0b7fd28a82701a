import pytest

from depot.database import Item

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("count", [1, 7])
async def test_delivered(client, count):
    assert (await client.put(f"/stock/crate?count={count}")).json() == count
    assert (await client.get("/stock/crate")).json() == count


async def test_what_is_only_added_is_seen(client, session):
    session.add(Item(name="drum", stock=3))
    assert (await client.get("/stock/drum")).json() == 3


async def test_migrated(client):
    assert (await client.get("/stock/pallet")).json() == 100


async def test_none(client):
    assert (await client.get("/stock/crate")).status_code == 404
