"""The coordinator of a running service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from ..config import settings
from .agent_coordinator import AgentCoordinator


@asynccontextmanager
async def coordinator_lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one coordinator in `app.state`; it connects at its first call.

    LangGraph takes seconds to import. That is done in the background, once the service has started:
    neither the start nor the first message waits for it.
    """
    # In tests each connection is closed after use, as the engine's are, and most do without LangGraph.
    testing = settings.environment == "test"
    pool_size = 0 if testing else settings.database_pool_size
    coordinator = app.state.coordinator = AgentCoordinator(pool_size=pool_size)
    warming = None if testing else asyncio.create_task(coordinator.warm_up())
    try:
        yield
    finally:
        if warming is not None:
            await asyncio.wait([warming])
        await coordinator.aclose()
        del app.state.coordinator


def get_coordinator(request: Request) -> AgentCoordinator:
    """The coordinator of the application, or one that needs no lifespan."""
    coordinator: AgentCoordinator | None = getattr(request.app.state, "coordinator", None)
    return coordinator or AgentCoordinator()
