"""What tests ask for. Override one by defining it again in `tests/conftest.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from .checks.offline import offline
from .errors import HarnessError
from .harness import Harness
from .plugin import HARNESS, failed, needs_database

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession


@pytest.fixture(scope="session", autouse=True)
def enterprise_database_setup(request: pytest.FixtureRequest) -> Harness | None:
    """A complete, verified, seeded database for this worker, whatever was there before.

    Starts nothing when all selected tests are marked `unit`.
    """
    if not any(needs_database(item) for item in request.session.items):
        return None
    harness = request.config.stash[HARNESS]
    try:
        with offline(False):  # the first test of the session may be a unit test
            harness.start()
    except Exception as error:
        failure = error
    else:
        return harness
    request.session.shouldfail = "there is no database for the tests"
    causes = request.config.get_verbosity() > 1 or request.config.option.tbstyle == "long"
    if isinstance(failure, HarnessError) and not causes:
        pytest.fail(str(failure), pytrace=False)
    raise failure


def _ready(harness: Harness | None, request: pytest.FixtureRequest) -> Harness:
    if harness is None or not needs_database(request.node):
        pytest.fail("A test marked unit asks for a database: mark it integration.", pytrace=False)
    return harness


@pytest_asyncio.fixture(scope="session")
def _kept_connection(enterprise_database_setup: Harness | None) -> Any:
    """The event loop of the connection that rollback tests share, which is closed before the loop is.

    No coroutine: in a test marked `anyio`, anyio would run it, on a loop that ends with that test.
    pytest-asyncio sets its loop for any fixture, but types them as coroutines.
    """
    loop = asyncio.get_event_loop()
    yield loop
    if enterprise_database_setup is not None:
        loop.run_until_complete(enterprise_database_setup.transaction.close())


@pytest_asyncio.fixture
async def db_session(
    request: pytest.FixtureRequest,
    enterprise_database_setup: Harness | None,
    _kept_connection: asyncio.AbstractEventLoop,
) -> AsyncIterator[AsyncSession]:
    """A session of the service, in a transaction that is rolled back at the end of the test.

    All that the service does through its engine happens in that transaction, whatever it commits.
    In a test marked `own_database`, everything is real instead.
    """
    harness = _ready(enterprise_database_setup, request)
    if request.node.get_closest_marker("own_database"):
        harness.begin_reuse()
        async with harness.sessionmaker() as session:
            try:
                yield session
            finally:
                await harness.reused.finish()
        return
    problems: list[str] = []
    harness.begin_rollback()
    try:
        async with harness.sessionmaker() as session:
            yield session
            if not failed(request.node):
                problems += await harness.transaction.check_deferred()
    finally:
        problems += await harness.end_rollback()
        if asyncio.get_running_loop() is not _kept_connection:  # one of anyio's, which ends
            await harness.transaction.close()
    if problems:
        pytest.fail("\n\n".join(problems), pytrace=False)


@pytest_asyncio.fixture
async def db_engine(
    request: pytest.FixtureRequest, enterprise_database_setup: Harness | None
) -> AsyncIterator[AsyncEngine]:
    """An engine on the tests' database that keeps no connection. What it commits is real.

    The database is replaced before the next test, if this one connected.
    """
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    current = _ready(enterprise_database_setup, request).environment

    engine = create_async_engine(current.url(current.database), poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()
