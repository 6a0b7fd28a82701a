import asyncio

from alembic import context
from ledger.db import get_engine


def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def main():
    async with get_engine().begin() as connection:
        await connection.run_sync(migrate)
    await get_engine().dispose()


asyncio.run(main())
