"""The shop's counter, over HTTP."""

from contextlib import asynccontextmanager
from os import environ

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from store import Book, Session


@asynccontextmanager
async def lifespan(app):
    app.state.cache = Redis.from_url(environ["CACHE_URL"], decode_responses=True)
    yield
    await app.state.cache.aclose()


app = FastAPI(lifespan=lifespan)


class NewBook(BaseModel):
    isbn: str
    title: str


async def session():
    async with Session() as current:
        yield current


@app.get("/books")
async def books(current=Depends(session)):  # noqa: B008
    return [book.title for book in await current.scalars(select(Book).order_by(Book.title))]


@app.post("/books", status_code=201)
async def add(book: NewBook, current=Depends(session)):  # noqa: B008
    current.add(Book(**book.model_dump()))
    try:
        await current.commit()
    except IntegrityError:
        await current.rollback()
        raise HTTPException(409) from None
    await app.state.cache.incr("added")
