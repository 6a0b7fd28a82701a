"""What tests ask for. Override one by defining it again in `tests/conftest.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from . import markers
from .checks import tasks
from .errors import HarnessError
from .harness import Harness
from .layout import CONFTEST, PACKAGE
from .markers import needs_database
from .plugin import HARNESS, attempt
from .recipe import resolve

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession


@pytest.fixture(scope="session")
def _harness(request: pytest.FixtureRequest) -> Harness | None:
    """The harness, started; None when all selected tests are marked `unit`."""
    if not any(needs_database(item) for item in request.session.items):
        return None
    harness = request.config.stash[HARNESS]
    try:
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


@pytest.fixture(scope="session", autouse=True)
def enterprise_database_setup(_harness: Harness | None) -> Harness | None:
    """A complete, verified, seeded database for this worker, whatever was there before.

    Starts nothing when all selected tests are marked `unit`. One that takes its place may yield what it
    likes: nothing here asks for it.
    """
    return _harness


def _ready(harness: Harness | None, request: pytest.FixtureRequest) -> Harness:
    if harness is None or not needs_database(request.node):
        pytest.fail(
            f"A test marked {markers.unit} asks for a database: mark it integration.", pytrace=False
        )
    return harness


@pytest_asyncio.fixture(scope="session", loop_scope="session", autouse=True)
def _session_loop(_harness: Harness | None) -> Any:
    """The event loop on which connections of the service are kept from test to test.

    No coroutine: in a test marked `anyio`, anyio would run it, on a loop that ends with that test.
    pytest-asyncio sets its loop for any fixture, but types them as coroutines.
    """
    loop = asyncio.get_event_loop()
    tasks.watch_loop(loop)
    forget = _harness.keep_connections(loop) if _harness is not None else None
    yield
    tasks.watch_loop(None)
    if forget is not None:
        forget()


@pytest.fixture(scope="session")
def _new_session(_harness: Harness | None) -> Callable[[], Any]:
    """Makes sessions as the recipe says. Looked at once, before a test lets the service point elsewhere."""
    if _harness is None:
        return lambda: None
    name = _harness.recipe.session
    if name is None:
        raise HarnessError(f"db_session needs a `session` in the recipe, in {CONFTEST}.")
    factory = resolve(name)
    looked_at = False

    def make() -> Any:
        nonlocal looked_at
        made = factory
        while callable(made):  # a function that returns a sessionmaker, or that
            made = made()
        if not looked_at:
            _check_session(made, name, _harness)
            looked_at = True
        return made

    # One that asks for the running task raises: then the first that is made is looked at.
    with suppress(RuntimeError):
        make()
    return make


def _check_session(session: Any, name: str, harness: Harness) -> None:
    from sqlalchemy.exc import UnboundExecutionError

    if not hasattr(session, "get_bind"):
        raise HarnessError(
            f"{name}, which {CONFTEST} names, does not make sessions of SQLAlchemy but "
            f"{type(session).__name__}. Name the sessionmaker, or a function that returns a session."
        )
    try:
        url = session.get_bind().engine.url
    except UnboundExecutionError:  # each of its models has an engine of its own
        return
    if url.database != harness.environment.database:
        raise HarnessError(
            f"{name} points at {url.render_as_string()}, not at the tests' database: "
            f"it was imported before {PACKAGE}, or the first conftest.py, prepared the environment."
        )


@pytest_asyncio.fixture
async def db_session(
    request: pytest.FixtureRequest,
    _harness: Harness | None,
    _new_session: Callable[[], Any],
) -> AsyncIterator[AsyncSession]:
    """A session of the service. What it commits is real, and put back after the test.

    What it has not committed is rolled back at the end, and nobody else sees it before: arrange,
    then commit.

    Raises:
        HarnessError: the recipe's `session` can't be imported, or connects elsewhere; later, where it is
            used on another event loop.
    """
    _ready(_harness, request)
    session = _new_session()
    raised = _keep_to_loop(session.sync_session) if hasattr(session, "sync_session") else []
    attempt(request.node).session = session
    async with AsyncExitStack() as stack:
        if hasattr(session, "__aenter__"):
            await stack.enter_async_context(session)
        else:
            stack.enter_context(session)
        yield session
    if raised and not attempt(request.node).failed:
        raise raised[0]


def _keep_to_loop(session: Any) -> list[HarnessError]:
    """A connection can be used, and closed, on the event loop alone on which it was opened.

    Returns:
        Gets what is raised: who calls the session may swallow it.
    """
    here, get_bind = asyncio.get_running_loop(), session.get_bind
    raised = []

    def checked(*args: Any, **kwargs: Any) -> Any:  # called before each statement
        if asyncio._get_running_loop() not in (here, None):
            error = HarnessError(
                "db_session was used on another event loop than that of its fixture, which is the whole run's. "
                "On a loop of its own, as by loop_scope or asyncio.run(), a test opens a session of its own."
            )
            raised.append(error)
            raise error
        return get_bind(*args, **kwargs)

    session.get_bind = checked
    return raised


def _async_driver(driver: str) -> str:
    """The service's, if SQLAlchemy has it for asyncio, or one that is there."""
    library = driver.partition("+")[2]
    if library not in ("asyncpg", "psycopg", "psycopg_async"):
        library = "asyncpg" if find_spec("asyncpg") else "psycopg"
    return f"postgresql+{library}"


@pytest_asyncio.fixture
async def db_engine(
    request: pytest.FixtureRequest, _harness: Harness | None
) -> AsyncIterator[AsyncEngine]:
    """An engine on the tests' database that keeps no connection: one for each session at a time."""
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    current = _ready(_harness, request).environment

    engine = create_async_engine(
        current.url(current.database, _async_driver(current.driver)), poolclass=NullPool
    )
    try:
        yield engine
    finally:
        await engine.dispose()
