from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from ledger.db import session_factory


class Overdrawn(Exception):
    pass


def pence(pounds):
    return round(pounds * 100)


async def open_account(number):
    async with session_factory().begin() as session:
        await session.execute(text("INSERT INTO account VALUES (:n)"), {"n": number})


async def balance(number):
    async with session_factory()() as session:
        query = text("SELECT pence FROM account WHERE number = :n")
        return await session.scalar(query, {"n": number})


async def transfer(source, target, amount):
    """Move pence, or raise Overdrawn and move nothing."""
    move = text("UPDATE account SET pence = pence + :amount WHERE number = :n")
    async with session_factory()() as session:
        try:
            await session.execute(move, {"n": target, "amount": amount})
            await session.execute(move, {"n": source, "amount": -amount})
            await session.commit()
        except IntegrityError as error:
            await session.rollback()
            raise Overdrawn(source) from error
