from litestar import Litestar, Request, get, post
from litestar.exceptions import HTTPException, NotFoundException
from sqlalchemy.exc import IntegrityError

from parcels.db import Parcel, get_engine, new_session


@post("/parcels/{number:str}")
async def send(number: str, request: Request) -> dict:
    data = await request.json()
    async with new_session() as session:
        session.add(Parcel(number=number, contents=data))
        try:
            await session.commit()
        except IntegrityError as error:
            raise HTTPException(status_code=409) from error
    return data


@get("/parcels/{number:str}")
async def look(number: str) -> dict:
    async with new_session() as session:
        parcel = await session.get(Parcel, number)
        if parcel is None:
            raise NotFoundException
        return {"state": parcel.state, "contents": parcel.contents}


@post("/parcels/{number:str}/delivery")
async def deliver(number: str) -> None:
    async with new_session() as session, session.begin():
        parcel = await session.get(Parcel, number, with_for_update=True)
        if parcel is None:
            raise NotFoundException
        parcel.state = "delivered"


async def close() -> None:
    await get_engine().dispose()


def create_app():
    return Litestar([send, look, deliver], on_shutdown=[close])
