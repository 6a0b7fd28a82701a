"""What happens around every request, as plain ASGI: no buffering, no extra tasks."""

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import settings
from .errors import problem_response, route_path

logger = structlog.get_logger(__name__)

HEADER = "X-Request-ID"

# What every answer says, unless the route says otherwise: it is for who asked alone, it is no page,
# and no page shows it. (The pages of the API document are pages, and load scripts.)
ANSWERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
PAGES = ANSWERS | {"Content-Security-Policy": "frame-ancestors 'none'"}
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
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                page = headers.get("content-type", "").startswith("text/html")
                for name, value in (PAGES if page else ANSWERS).items():
                    headers.setdefault(name, value)
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
                log = logger.debug if route_path(scope).startswith("/health/") else logger.info
                log(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round((time.perf_counter() - begun) * 1000, 1),
                )


class HeadAsGet:
    """Answers HEAD as the GET of the same path, without the body, as HTTP wants it (RFC 9110)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


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
