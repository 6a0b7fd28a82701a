"""The coordinator of a running service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from ..config import settings
from .agent_coordinator import AgentCoordinator


@asynccontextmanager
async def coordinator_lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one coordinator in `app.state`; nothing is imported or connected before its first call."""
    # In tests each connection is closed after use, as the engine's are.
    pool_size = 0 if settings.environment == "test" else settings.database_pool_size
    app.state.coordinator = AgentCoordinator(pool_size=pool_size)
    try:
        yield
    finally:
        await app.state.coordinator.aclose()
        del app.state.coordinator


def get_coordinator(request: Request) -> AgentCoordinator:
    """The coordinator of the application, or one that needs no lifespan."""
    coordinator: AgentCoordinator | None = getattr(request.app.state, "coordinator", None)
    return coordinator or AgentCoordinator()
