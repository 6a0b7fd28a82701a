"""Makes or updates the checkpointer's tables: `python -m <package>.coordinator.setup`.

Run it where `alembic upgrade head` runs. The tables are LangGraph's, which brings its own
migrations for them; Alembic leaves them alone.
"""

import asyncio

from .checkpointer import open_saver


async def main() -> None:
    """Connect, set up, disconnect."""
    async with open_saver():
        print("The checkpointer's tables are up to date.")


if __name__ == "__main__":
    asyncio.run(main())
