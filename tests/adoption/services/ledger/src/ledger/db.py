import os
from functools import cache

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool


@cache
def get_engine():
    pool = NullPool if os.environ.get("LEDGER_MODE") == "test" else AsyncAdaptedQueuePool
    return create_async_engine(os.environ["LEDGER_DB"], poolclass=pool)


@cache
def session_factory():
    return async_sessionmaker(get_engine())
