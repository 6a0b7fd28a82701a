"""`tests.harness.lifespan`: an application starts and shuts down as under a server."""

from __future__ import annotations

from tests.support.small import Small

CONCERNS = ["*/harness/lifespan.py"]

TESTS = """\
import asyncio
from contextlib import asynccontextmanager

import anyio
import pytest
import pytest_asyncio
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.harness.lifespan import running

pytestmark = pytest.mark.unit
seen = []


async def root(request: Request) -> PlainTextResponse:
    request.state.own = "of one request"
    return PlainTextResponse(request.state.word + request.query_params.get("more", ""))


def application(lifespan) -> Starlette:
    return Starlette(routes=[Route("/", root)], lifespan=asynccontextmanager(lifespan))


async def with_tasks(app):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        seen.append("started")
        yield {"word": "of the lifespan"}
        group.cancel_scope.cancel()
    seen.append("shut down")


@pytest_asyncio.fixture
async def client():
    async with (
        running(application(with_tasks)) as app,
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def test_request(client):
    assert (await client.get("/")).text == (await client.get("/")).text == "of the lifespan"
    assert seen == ["started"]


async def test_shut_down():
    assert seen == ["started", "shut down"]


async def fails_to_start(app):
    raise LookupError("no configuration")
    yield


async def fails_to_shut_down(app):
    yield
    raise LookupError("not flushed")


@pytest.mark.parametrize("lifespan", [fails_to_start, fails_to_shut_down])
async def test_errors_are_raised(lifespan):
    with pytest.raises(LookupError, match="configuration|flushed"):
        async with running(application(lifespan)):
            seen.append(lifespan.__name__)
    assert "fails_to_start" not in seen


async def test_error_of_a_test():
    with pytest.raises(KeyError):
        async with running(application(with_tasks)):
            raise KeyError
    assert seen[-2:] == ["started", "shut down"]


def says(*answers):
    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        for answer in answers:
            await receive()
            await send({"type": f"lifespan.{answer}", "message": "because"})

    return app


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([], "did not start: it ended"),
        (["startup.failed"], "did not start: because"),
        (["startup.complete", "shutdown.failed"], "did not shut down: because"),
    ],
)
async def test_refusals(answers, error):
    with pytest.raises(RuntimeError, match=error):
        async with running(says(*answers)):
            pass


async def hangs(scope, receive, send):
    await receive()
    try:
        await anyio.sleep_forever()
    finally:
        seen.append("given up")


async def test_start_that_hangs_can_be_given_up():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), running(hangs):
            pass
    assert seen[-1] == "given up"


async def test_without_a_word_on_shutdown():
    async with running(says("startup.complete", "shutdown.complete")):
        pass
"""


def test_lifespan(small: Small) -> None:
    outcome = small.tried(TESTS, "-p", "no:randomly")
    assert outcome.counts == {"passed": 10}
