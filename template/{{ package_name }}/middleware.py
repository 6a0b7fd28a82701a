"""What happens around every request, as plain ASGI: no buffering, no extra tasks."""

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import settings
from .errors import problem_response

logger = structlog.get_logger(__name__)

HEADER = "X-Request-ID"
# What is accepted goes into logs and headers.
ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestContext:
    """Gives each request an id, logs it once, and answers for errors that nobody foresaw."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        sent = Headers(scope=scope).get(HEADER, "")
        request_id = sent if ACCEPTED.fullmatch(sent) else uuid.uuid4().hex
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            begun = time.perf_counter()
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                logger.exception("unhandled error")
                if status is not None:
                    raise  # too late for another answer: the server cuts the connection
                await problem_response(500)(scope, receive, send_with_id)
            finally:
                # Probes come every few seconds and say nothing new.
                log = logger.debug if scope["path"].startswith("/health/") else logger.info
                log(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round((time.perf_counter() - begun) * 1000, 1),
                )


class BodyLimit:
    """Refuses bodies above `settings.max_body_bytes`, whether or not their size is declared."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > settings.max_body_bytes:
            await problem_response(413)(scope, receive, send)
            return

        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > settings.max_body_bytes:
                raise HTTPException(413)
            return message

        await self.app(scope, receive_limited, send)
