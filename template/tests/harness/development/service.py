"""The service of `make run`: uvicorn, from its start to its end."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from ..environment import ROOT
from ..errors import HarnessError
from ..servers.postgres import children
from .place import Place
from .processes import TRIES, end, is_free
from .stopping import undisturbed

_FIRST_PORT = 8000
_STOP_SECONDS = 20

# By the folder, its process is known again.
_COMMAND = [sys.executable, "-m", "uvicorn", f"--app-dir={ROOT}"]
_NOTE = "uvicorn"


def end_last(place: Place) -> None:
    """End what a crash left running of the last one.

    Raises:
        HarnessError: it can't be ended.
    """
    end(place.path / _NOTE, f"-m uvicorn --app-dir={ROOT} ")


class Service:
    """The service's process: `run()` returns when it has ended."""

    def __init__(self, arguments: Sequence[str], place: Place) -> None:
        """Read uvicorn's arguments, the application first."""
        self._command = [*_COMMAND, *arguments]
        self._note = place.path / _NOTE
        options = argparse.ArgumentParser("uvicorn", add_help=False, allow_abbrev=False)
        for name, default in ("host", "127.0.0.1"), ("ssl-certfile", ""), ("uds", ""), ("fd", ""):
            options.add_argument(f"--{name}", default=_of_environment(name) or default)
        options.add_argument("--port", type=int, default=_of_environment("port"))
        known, _ = options.parse_known_args(arguments)
        self._socket: str = known.uds or known.fd
        self._host: str = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(known.host, known.host)
        self._scheme = "https" if known.ssl_certfile else "http"
        first = known.port or _FIRST_PORT
        self._ports = range(first, first + (1 if known.port else TRIES))

    def run(self, variables: Mapping[str, str], ready: Callable[[str], None]) -> int:
        """Run it until it ends by itself. Returns its exit status.

        Args:
            variables: for its environment.
            ready: called once, with its URL, as soon as it answers.

        Raises:
            HarnessError: its port is taken.
            Stopped: we were told to end; it has ended, too.
        """
        for port in self._ports:
            if self._socket or is_free(port, self._host):
                status, listened = self._run_on(port, variables, ready)
                if listened or self._socket or is_free(port, self._host):
                    return status
        raise HarnessError(
            f"All ports from {self._ports[0]} to {self._ports[-1]} are taken: end what uses one of them."
            if len(self._ports) > 1
            else f"Port {self._ports[0]} is taken: name another one, or none and make run finds one."
        )

    def _run_on(
        self, port: int, variables: Mapping[str, str], ready: Callable[[str], None]
    ) -> tuple[int, bool]:
        """Run it on a port. Returns its status, and whether it ever listened."""
        listens = False
        process = None
        try:
            with undisturbed():
                command = [*self._command, "--port", str(port)]
                process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})
                self._note.write_text(str(process.pid), encoding="ascii")
            while not listens and process.poll() is None:
                listens = bool(self._socket) or _listens(self._host, port)
                time.sleep(0.02)
            if listens:
                host = f"[{self._host}]" if ":" in self._host else self._host
                ready(self._socket or f"{self._scheme}://{host}:{port}")
            return process.wait(), listens
        finally:
            if process is not None:
                _stop(process)
            self._note.unlink(missing_ok=True)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let requests in flight end, but not wait for clients that stay.

    Where it was Ctrl-C, the terminal has told it already. Two different signals don't hurry it, as
    two of that do.
    """
    workers = children(process.pid) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in (process.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def _of_environment(option: str) -> str | None:
    """What uvicorn takes for an option that is not among its arguments."""
    return os.environ.get(f"UVICORN_{option.upper().replace('-', '_')}")
