import pytest
from parcels.db import Parcel, new_session

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("contents", [{"books": 2}, {"cups": [1, 2]}])
async def test_sent(client, contents):
    assert (await client.post("/parcels/A1", json=contents)).status_code == 201
    assert (await client.get("/parcels/A1")).json() == {"state": "posted", "contents": contents}


async def test_number_is_taken(client):
    await client.post("/parcels/A1", json={})
    assert (await client.post("/parcels/A1", json={})).status_code == 409


async def test_delivered(client, session):
    session.add(Parcel(number="A1", contents={}))
    await session.commit()
    assert (await client.post("/parcels/A1/delivery")).status_code == 201
    await session.refresh(parcel := await session.get(Parcel, "A1"))
    assert parcel.state == "delivered"


async def test_contents_are_json_of_msgspec(session):
    session.add(Parcel(number="B2", contents={"weight": 1.5}))
    await session.commit()
    async with new_session() as other:
        assert (await other.get(Parcel, "B2")).contents == {"weight": 1.5}


async def test_none(client):
    assert (await client.get("/parcels/A1")).status_code == 404
