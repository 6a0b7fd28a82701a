"""An application's lifespan, entered and left in one task, as a server does it.

A fixture's set-up and tear-down are tasks of their own, and a task group, of anyio or asyncio, must be
left in the task that entered it. So the lifespan runs in a third one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""As in ASGI 3: FastAPI, Starlette, Litestar and others."""


@asynccontextmanager
async def running(app: Application) -> AsyncIterator[Application]:
    """An application between its start and its shutdown.

    Args:
        app: by the protocol of https://asgi.readthedocs.io/en/latest/specs/lifespan.html.

    Returns:
        The application, whose requests see the state that its lifespan yields: for `ASGITransport`.

    Raises:
        Exception: what its start, or its shutdown, raises.
        RuntimeError: it refused to start, or ended, without saying why.
    """
    told: asyncio.Queue[Message] = asyncio.Queue()
    is_started = asyncio.Event()
    state: dict[str, Any] = {}
    refusal = "it ended"

    async def send(message: Message) -> None:
        nonlocal refusal
        if message["type"] == "lifespan.startup.complete":
            is_started.set()
        elif message["type"].endswith(".failed"):
            refusal = message.get("message") or "it gave no reason"

    async def request(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await app({**scope, "state": {**state}}, receive, send)

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    lifespan = asyncio.ensure_future(app(scope, told.get, send))
    starts = asyncio.ensure_future(is_started.wait())
    told.put_nowait({"type": "lifespan.startup"})
    try:
        await asyncio.wait([lifespan, starts], return_when=asyncio.FIRST_COMPLETED)
        if not is_started.is_set():
            await lifespan
            raise RuntimeError(f"The application did not start: {refusal}")
        refusal = ""
        yield request
    finally:
        starts.cancel()
        if not is_started.is_set():  # whoever waited for it gave up
            lifespan.cancel()
            await asyncio.wait([lifespan])
        elif not lifespan.done():
            told.put_nowait({"type": "lifespan.shutdown"})
        await lifespan
    if refusal:
        raise RuntimeError(f"The application did not shut down: {refusal}")
