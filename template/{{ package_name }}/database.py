"""The engine, the session factory, and the session of a request.

Nothing connects until the first query, and a server that was away needs no restart of the service:
every connection is tried before it is used again.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
from sqlalchemy import DateTime, MetaData, NullPool
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

from .config import settings
from .exceptions import Unavailable


class Base(DeclarativeBase):
    """Parent of every model. Constraints have names that migrations and error handlers can use."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012
    # Values that the server makes come back with the INSERT or UPDATE: reading them later would be
    # a query in the middle of an attribute access, which asyncio does not allow.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012


async def _connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:
    # SQLAlchemy wraps what Postgres says, not what the network does.
    try:
        return await asyncpg.connect(*args, **kwargs)
    except OSError as error:
        raise Unavailable("Postgres can't be reached") from error


def _pool_options(changes: dict[str, Any]) -> dict[str, Any]:
    # Tests connect from places that a pool would outlive; each connection is closed after use.
    if settings.environment == "test":
        return {"poolclass": NullPool}
    return {
        "pool_size": settings.database_pool_size,
        "max_overflow": settings.database_max_overflow,
        "pool_timeout": settings.database_pool_timeout,
        "pool_recycle": settings.database_pool_recycle,
        "pool_pre_ping": True,
        **changes,
    }


def make_engine(url: str, **pool: Any) -> AsyncEngine:
    """An engine with the options of the settings; it connects when it is first used.

    Args:
        pool: options of the pool that differ from those of the settings.
    """
    return create_async_engine(
        url,
        connect_args={
            "async_creator_fn": _connect,
            "timeout": settings.database_connect_timeout,
            "command_timeout": settings.database_command_timeout,
        },
        # Errors are logged, and what customers said does not belong into a log.
        hide_parameters=settings.environment in {"staging", "production"},
        **_pool_options(pool),
    )


engine = make_engine(settings.database_url)
# For probes alone. They must not wait for requests that wait for each other: a table that somebody
# locks would then take every instance out of service.
probe_engine = make_engine(settings.database_url, pool_size=1, max_overflow=0)
# Closed is closed: what streams an answer or runs after it has a session of its own. That of the
# request would take a connection again, and nobody would give it back.
AsyncSessionLocal = async_sessionmaker(engine, expire_on_commit=False, close_resets_only=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    """One session for a request: committed when the route returned, rolled back when it raised."""
    async with AsyncSessionLocal() as session:
        yield session
        await session.commit()
