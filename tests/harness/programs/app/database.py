"""The engine and the session factory, as a rendered service has them in its tests."""

import os

from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)


def make(url: str) -> tuple[AsyncEngine, async_sessionmaker[AsyncSession]]:
    """Both, for the database of a URL."""
    engine = create_async_engine(url, poolclass=NullPool)
    return engine, async_sessionmaker(engine, expire_on_commit=False)


engine, AsyncSessionLocal = make(os.environ["DATABASE_URL"])
