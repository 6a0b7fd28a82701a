"""Polls, and apart from them what was done: two engines, one of them async."""

import os

from sqlalchemy import ForeignKey, create_engine, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

URL = os.environ["POLLS_URL"]

engine = create_engine(URL, pool_size=4)
Session = sessionmaker(engine)
audit_engine = create_async_engine(URL)
AuditSession = async_sessionmaker(audit_engine)


class Base(DeclarativeBase):
    pass


class AuditBase(DeclarativeBase):
    pass


class Poll(Base):
    __tablename__ = "poll"

    id: Mapped[int] = mapped_column(primary_key=True)
    question: Mapped[str] = mapped_column(unique=True)


class Vote(Base):
    __tablename__ = "vote"

    id: Mapped[int] = mapped_column(primary_key=True)
    poll_id: Mapped[int] = mapped_column(ForeignKey("poll.id"))
    answer: Mapped[str]


class Entry(AuditBase):
    __tablename__ = "entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def tally(poll_id):
    with Session() as session:
        query = select(Vote.answer, func.count()).where(Vote.poll_id == poll_id)
        return dict(session.execute(query.group_by(Vote.answer)).all())


async def note(text):
    async with AuditSession.begin() as session:
        session.add(Entry(text=text))


async def noted():
    async with AuditSession() as session:
        return list(await session.scalars(select(Entry.text).order_by(Entry.id)))
