import asyncio

import pytest
from ledger.transfers import Overdrawn, balance, open_account, pence, transfer
from sqlalchemy import text


@pytest.mark.unit
def test_pence():
    assert pence(0.29) == 29


@pytest.mark.parametrize("time", ["first", "second"])
async def test_transfer(db_session, time):
    await open_account("ada")
    await transfer("till", "ada", 2500)
    assert [await balance("till"), await balance("ada")] == [7500, 2500]


async def test_overdraft_moves_nothing(db_session):
    await open_account("ada")
    with pytest.raises(Overdrawn):
        await transfer("ada", "till", 1)
    assert [await balance("till"), await balance("ada")] == [10000, 0]


@pytest.mark.own_database
async def test_of_two_who_empty_the_till_one_does(db_engine):
    await open_account("ada")
    results = await asyncio.gather(
        *(transfer("till", "ada", 10000) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "Overdrawn"]
    async with db_engine.connect() as connection:
        assert await connection.scalar(text("SELECT sum(pence) FROM account")) == 10000


async def test_migrated_and_seeded():
    assert [await balance("equity"), await balance("till")] == [0, 10000]
