from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy.ext.asyncio import AsyncSession

from depot.database import Item, get_session

router = APIRouter(prefix="/stock")


@router.put("/{name}")
async def deliver(name: str, count: int, session: Annotated[AsyncSession, Depends(get_session)]):
    item = await session.get(Item, name, with_for_update=True)
    if item is None:
        session.add(item := Item(name=name, stock=0))
    item.stock += count
    await session.commit()
    return item.stock


@router.get("/{name}")
async def look(name: str, session: Annotated[AsyncSession, Depends(get_session)]):
    item = await session.get(Item, name)
    if item is None:
        raise HTTPException(404)
    return item.stock
