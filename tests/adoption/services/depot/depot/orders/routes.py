from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from depot.database import Item, Order, get_session

router = APIRouter(prefix="/orders")


@router.post("", status_code=201)
async def order(item: str, count: int, session: Annotated[AsyncSession, Depends(get_session)]):
    found = await session.get(Item, item)
    if found is None:
        raise HTTPException(404)
    try:
        async with session.begin_nested():
            found.stock = Item.stock - count
            session.add(made := Order(item=item, count=count))
    except IntegrityError:
        raise HTTPException(409) from None
    await session.commit()
    return made.id
