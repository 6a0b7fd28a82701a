"""The Valkey of `make run`: it keeps what it is given, and listens on loopback, with a password."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import suppress

from ..files import private
from ..servers.loopback import HOST, first_port, on_a_free_port
from ..servers.processes import end_noted, stop
from ..servers.valkey import launch
from .place import Place

_START_SECONDS = 60  # it reads all that it has kept
_STOP_SECONDS = 30


class DevelopmentValkey:
    """The project's Valkey for development."""

    def __init__(self, place: Place) -> None:
        self.home = place.path / "valkey"
        self.port = first_port(self.home, 20000)
        self._password = place.secret("valkey")
        self._note = self.home / "pid"
        self._process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start it, having ended what a crash left of the last one.

        Raises:
            HarnessError: it does not start; with what it says.
        """
        private(self.home)
        settings = {
            "dir": str(self.home),
            "set-proc-title": "no",  # by its arguments, it is known again
            "pidfile": str(self._note),
            "bind": HOST,
            "save": "",
            "appendonly": "yes",
            "loglevel": "warning",
        }
        self._end_last()

        def start(port: int) -> subprocess.Popen[bytes]:
            self.port = port
            return launch(
                {**settings, "port": str(port)},
                self._answers,
                password=self._password,
                seconds=_START_SECONDS,
            )

        self._process = on_a_free_port(self.port, start)

    def remove(self) -> None:
        """Delete what it has kept.

        Raises:
            HarnessError: a crash left it running, and it can't be ended.
        """
        self._end_last()
        if self.home.exists():
            shutil.rmtree(self.home)

    def _end_last(self) -> None:
        end_noted(self._note, f"--dir {self.home} --set-proc-title")

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as client:
            client.sendall(f"AUTH {self._password}\r\nPING\r\nQUIT\r\n".encode())
            with client.makefile("rb") as answers:
                return answers.read().startswith(b"+OK\r\n+PONG\r\n")
        return False

    def stop(self) -> None:
        """Let it write what it has, and end."""
        stop(self._process, _STOP_SECONDS)
        self._note.unlink(missing_ok=True)
