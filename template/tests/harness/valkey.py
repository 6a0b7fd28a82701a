"""Redis for tests: the pytest plugin of its own, so that a service without Redis does not load it.

What the servers are: `servers/valkey.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from . import environment
from .checks import versions
from .checks.offline import offline
from .errors import HarnessError
from .plugin import needs_database
from .servers import guard
from .servers.valkey import EmbeddedRedis, ExternalRedis, RedisServer

if TYPE_CHECKING:
    import redis.asyncio

_SERVER = pytest.StashKey[RedisServer]()


def pytest_configure(config: pytest.Config) -> None:
    try:
        guard.check_redis_url(environment.current)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """After the test's own fixtures: the next test finds Redis empty."""
    result = yield
    server = item.config.stash.get(_SERVER, None)
    if server is not None and needs_database(item):
        try:
            server.clear()
        except HarnessError as error:
            pytest.fail(str(error), pytrace=False)
    return result


@pytest.fixture(scope="session", autouse=True)
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer | None]:
    """An empty Redis for this worker. Starts nothing when all selected tests are marked `unit`."""
    if not any(needs_database(item) for item in request.session.items):
        yield None
        return
    external = environment.current.external_redis_url is not None
    server = (ExternalRedis if external else EmbeddedRedis)(environment.current)
    failure = ""
    with offline(False):
        try:
            versions.check_installed(versions.REDIS)
            server.start()
        except HarnessError as error:
            failure = str(error)
    if failure:
        request.session.shouldfail = "there is no Redis for the tests"
        pytest.fail(failure, pytrace=False)
    request.config.stash[_SERVER] = server
    yield server
    del request.config.stash[_SERVER]
    with offline(False):
        try:
            server.stop()
        except HarnessError as error:
            failure = str(error)
    if failure:
        pytest.fail(failure, pytrace=False)


@pytest_asyncio.fixture
async def redis_client(
    request: pytest.FixtureRequest, redis_server: RedisServer | None
) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of the tests' Redis, which returns text. The database is emptied after each test."""
    import redis.asyncio

    if redis_server is None or not needs_database(request.node):
        pytest.fail("A test marked unit asks for Redis: mark it integration.", pytrace=False)
    client: Any = redis.asyncio.Redis.from_url(environment.current.redis_url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()
