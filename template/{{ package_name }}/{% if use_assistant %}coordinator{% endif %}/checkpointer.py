"""LangGraph's Postgres checkpointer, on the service's database. Imports LangGraph and psycopg."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, OperationalError
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from ..config import settings
from ..exceptions import Unavailable
from .database_url import psycopg_arguments

Pool = AsyncConnectionPool[AsyncConnection[DictRow]]

_LOCK = 0x1A466A9B  # of this module; any number that nobody else uses
_LOCK_PATIENCE = 60.0


def _arguments() -> dict[str, Any]:
    return psycopg_arguments(settings.database_url) | {
        "application_name": "checkpointer",
        "client_encoding": "UTF8",  # asyncpg asks for it, too
        "connect_timeout": max(2, round(settings.database_connect_timeout)),  # libpq's least is 2
        # As the checkpointer needs them. Prepared statements don't pass transaction poolers.
        "autocommit": True,
        "prepare_threshold": None,
        "row_factory": dict_row,
    }


class Connection(AsyncConnection[DictRow]):
    """One on which no statement waits for longer than on those of the engine."""

    async def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for what Postgres answers.

        Raises:
            OperationalError: it does not.
        """
        try:
            async with asyncio.timeout(settings.database_command_timeout):
                return await super().wait(*args, **kwargs)
        except TimeoutError as error:
            raise OperationalError("no answer in time") from error


def make_pool(size: int) -> Pool:
    """A pool that connects when asked for a connection; open it before and close it afterwards."""
    return AsyncConnectionPool(
        kwargs=_arguments(),
        connection_class=Connection,
        min_size=0,
        max_size=size,
        timeout=settings.database_pool_timeout,
        # While it tries, at longer and longer intervals, requests get no connection; who asks after
        # it has given up makes it try at once.
        reconnect_timeout=settings.database_pool_timeout,
        open=False,
        check=AsyncConnectionPool.check_connection,
        name="checkpointer",
    )


@asynccontextmanager
async def open_saver(pool: Pool | None = None) -> AsyncIterator[AsyncPostgresSaver]:
    """A checkpointer on the pool, or on a connection of its own that is closed at the end.

    Its tables are made if they are missing or older than the library.

    Raises:
        Unavailable: the database can't be reached.
    """
    try:
        if pool is not None:
            async with pool.connection() as connection:
                await _set_up(connection)
            yield AsyncPostgresSaver(pool)
            return
        async with await Connection.connect(**_arguments()) as connection:
            await _set_up(connection)
            yield AsyncPostgresSaver(connection)
    except OperationalError as error:
        raise Unavailable("the checkpointer can't reach Postgres") from error


async def _set_up(connection: AsyncConnection[DictRow]) -> None:
    newest = len(AsyncPostgresSaver.MIGRATIONS) - 1
    if await _version(connection) >= newest:
        return
    # One process at a time. Not by waiting inside Postgres: CREATE INDEX CONCURRENTLY waits for
    # statements that run, so it would wait for those that wait for it.
    async with asyncio.timeout(_LOCK_PATIENCE):
        while not await _value(  # noqa: ASYNC110 - the event is in another process
            connection, f"SELECT pg_try_advisory_lock({_LOCK}) AS value"
        ):
            await asyncio.sleep(0.1)
    try:
        if await _version(connection) < newest:
            # An index that is built concurrently waits for whatever runs: for as long as it takes.
            async with await AsyncConnection[DictRow].connect(**_arguments()) as patient:
                await AsyncPostgresSaver(patient).setup()
    finally:
        await _value(connection, f"SELECT pg_advisory_unlock({_LOCK}) AS value")


async def _version(connection: AsyncConnection[DictRow]) -> int:
    """The newest migration that was run; -1 for none."""
    if not await _value(connection, "SELECT to_regclass('checkpoint_migrations') AS value"):
        return -1
    version = await _value(connection, "SELECT max(v) AS value FROM checkpoint_migrations")
    return -1 if version is None else int(version)


async def _value(connection: AsyncConnection[DictRow], query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    return row and row["value"]
