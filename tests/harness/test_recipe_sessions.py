"""What `session` in a recipe may name: whatever makes sessions of SQLAlchemy, async or sync."""

from __future__ import annotations

import pytest

from tests.support.small import Small, edited
from tests.support.tiers import first

CONCERNS = ["*/harness/recipe.py", "*/harness/fixtures.py"]

NAME = "app.database:AsyncSessionLocal"

SESSIONS = """\
import asyncio
import os

from sqlalchemy import NullPool, create_engine, orm
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from app.database import AsyncSessionLocal, engine
from app.models import Base


class OwnSession(AsyncSession):
    pass


made_by_hand = orm.sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
own_class = async_sessionmaker(engine, class_=OwnSession)
scoped = async_scoped_session(AsyncSessionLocal, scopefunc=asyncio.current_task)
of_the_models = async_sessionmaker(binds={Base: engine})


def returns_a_session():
    return AsyncSessionLocal(info={"made": "by a function"})


def returns_a_sessionmaker():
    return AsyncSessionLocal


url = os.environ["DATABASE_URL"].replace("+asyncpg", "+psycopg")
sync_engine = create_engine(url, poolclass=NullPool)
sync = orm.sessionmaker(sync_engine)
sync_scoped = orm.scoped_session(sync)


def no_session():
    return {"host": "localhost"}


elsewhere = async_sessionmaker(create_async_engine("postgresql+asyncpg://127.0.0.1/somebody"))
"""

ASYNC = """\
import pytest
from sqlalchemy import func, select

from app.database import AsyncSessionLocal
from app.models import Customer

COUNT = select(func.count()).select_from(Customer)


@pytest.mark.parametrize("time", ["first", "second"])
async def test_commits(time, db_session):
    assert await db_session.scalar(COUNT) == 5
    db_session.add(Customer(full_name="Mallory", email="mallory@example.org"))
    await db_session.commit()
    async with AsyncSessionLocal() as other:
        assert await other.scalar(COUNT) == 6


async def test_does_not_commit(db_session):
    db_session.add(Customer(full_name="Mallory", email="mallory@example.org"))
    await db_session.flush()
    async with AsyncSessionLocal() as other:
        assert await other.scalar(COUNT) == 5


async def test_next(db_session):
    assert await db_session.scalar(COUNT) == 5
"""

SYNC = """\
import pytest
from sqlalchemy import func, select, text

from app.models import Customer
from tests.sessions import sync_engine

COUNT = select(func.count()).select_from(Customer)


def count():
    with sync_engine.connect() as connection:
        return connection.scalar(COUNT)


@pytest.mark.parametrize("time", ["first", "second"])
def test_commits(time, db_session):
    assert db_session.scalar(COUNT) == 5
    db_session.add(Customer(full_name="Mallory", email="mallory@example.org"))
    db_session.commit()
    assert count() == 6


def test_does_not_commit(db_session):
    db_session.add(Customer(full_name="Mallory", email="mallory@example.org"))
    db_session.flush()
    assert count() == 5


async def test_in_an_async_test(db_session):
    assert db_session.scalar(COUNT) == 5
    db_session.execute(text("DELETE FROM customers"))
    db_session.commit()


def test_next(db_session):
    assert count() == 5
"""

ASYNC_KINDS = [
    *("made_by_hand", "own_class", "scoped", "of_the_models"),
    *("returns_a_session", "returns_a_sessionmaker"),
]


def with_session(small: Small, name: str, tests: str) -> tuple[dict[str, int], str]:
    """What a run of tests gives whose recipe names such a session."""
    conftest = small.path / "tests/conftest.py"
    sessions = small.path / "tests/sessions.py"
    sessions.write_text(SESSIONS)
    try:
        text = conftest.read_text()
        assert text.count(NAME) == 1
        with edited(conftest, text.replace(NAME, f"tests.sessions:{name}")):
            outcome = small.tried(tests)
    finally:
        sessions.unlink()
    return outcome.counts, outcome.output


@pytest.mark.parametrize("kind", first(2, ASYNC_KINDS))
def test_async_sessions(kind: str, small: Small) -> None:
    counts, output = with_session(small, kind, ASYNC)
    assert counts == {"passed": 4}, output[-6000:]
    assert "no leaked sessions" in output


@pytest.mark.parametrize("kind", ["sync", "sync_scoped"])
def test_sync_sessions(kind: str, small: Small) -> None:
    counts, output = with_session(small, kind, SYNC)
    assert counts == {"passed": 5}, output[-6000:]
    assert "no leaked sessions" in output


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no_session", "does not make sessions of SQLAlchemy but dict"),
        ("elsewhere", "tests.sessions:elsewhere points at"),
        ("nothing", "which tests/conftest.py names, can't be imported"),
    ],
)
def test_what_makes_no_session_for_the_tests(kind: str, says: str, small: Small) -> None:
    counts, output = with_session(small, kind, ASYNC)
    assert counts == {"error": 4}, output[-6000:]
    assert says in output
    assert "INTERNALERROR" not in output
