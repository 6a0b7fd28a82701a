"""The service of `make run`: uvicorn, from its start to its end."""

from __future__ import annotations

import argparse
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from ..errors import HarnessError
from ..layout import ROOT
from ..servers.loopback import TRIES, PortTakenError, on_a_free_port
from ..servers.processes import end_noted, stop
from .place import Place
from .stopping import undisturbed

_FIRST_PORT = 8000
_STOP_SECONDS = 20

# By the folder, its process is known again.
_COMMAND = [sys.executable, "-m", "uvicorn", f"--app-dir={ROOT}"]
_NOTE = "uvicorn"
_HEADER = "X-Make-Run"


def end_last(place: Place) -> None:
    """End what a crash left running of the last one.

    Raises:
        HarnessError: it can't be ended.
    """
    end_noted(place.path / _NOTE, f"-m uvicorn --app-dir={ROOT} ")


class Service:
    """The service's process: `run()` returns when it has ended."""

    def __init__(self, arguments: Sequence[str], place: Place) -> None:
        """Read uvicorn's arguments, the application first."""
        # By it, what answers is known as ours, and not another's who was quicker to take the port.
        self._ours = secrets.token_hex(8)
        self._command = [*_COMMAND, *arguments, "--header", f"{_HEADER}:{self._ours}"]
        self._note = place.path / _NOTE
        self._process: subprocess.Popen[bytes] | None = None
        options = argparse.ArgumentParser("uvicorn", add_help=False, allow_abbrev=False)
        for name, default in ("host", "127.0.0.1"), ("ssl-certfile", ""), ("uds", ""), ("fd", ""):
            options.add_argument(f"--{name}", default=_of_environment(name) or default)
        options.add_argument("--port", type=int, default=_of_environment("port"))
        known, _ = options.parse_known_args(arguments)
        self._socket: str = known.uds or known.fd
        self._host: str = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(known.host, known.host)
        self._scheme = "https" if known.ssl_certfile else "http"
        self._port: int | None = known.port

    def run(self, variables: Mapping[str, str], ready: Callable[[str], None]) -> int:
        """Run it until it ends by itself. Returns its exit status.

        Args:
            variables: for its environment.
            ready: called once, with its URL, as soon as it answers.

        Raises:
            HarnessError: its port is taken, or it ended before it answered.
            Stopped: we were told to end; it has ended, too.
        """
        start = partial(self._start, variables)
        first = self._port or _FIRST_PORT
        tries = 1 if self._port else TRIES
        try:
            if self._socket:
                url = start(first)
            else:
                url = on_a_free_port(first, start, tries=tries, host=self._host)
            ready(url)
            assert self._process is not None
            return self._process.wait()
        finally:
            self._stop()
            self._note.unlink(missing_ok=True)

    def _start(self, variables: Mapping[str, str], port: int) -> str:
        with undisturbed():
            command = [*self._command, "--port", str(port)]
            self._process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})
            self._note.write_text(str(self._process.pid), encoding="ascii")
        if self._socket:
            return self._socket
        try:
            while not self._answers(port):
                if (status := self._process.poll()) is not None:
                    raise HarnessError(f"uvicorn ended with status {status} before it answered.")
                time.sleep(0.02)
        except HarnessError:
            self._stop()
            raise
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{port}"

    def _answers(self, port: int) -> bool:
        """Whether it is ready.

        Raises:
            PortTakenError: somebody else answers there: two may take a port before either listens.
        """
        client = HTTPConnection(self._host, port, timeout=1)
        if self._scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = HTTPSConnection(self._host, port, timeout=1, context=context)
        with closing(client), suppress(OSError, HTTPException):
            client.request("GET", "/health/live")
            if client.getresponse().getheader(_HEADER) != self._ours:
                raise PortTakenError(f"Another service answers on port {port}.")
            return True
        return False

    def _stop(self) -> None:
        """Let requests in flight end, but not wait for clients that stay.

        Where it was Ctrl-C, the terminal has told it already. Two different signals don't hurry it,
        as two of that do.
        """
        if self._process is not None:
            stop(self._process, _STOP_SECONDS)


def _of_environment(option: str) -> str | None:
    """What uvicorn takes for an option that is not among its arguments."""
    return os.environ.get(f"UVICORN_{option.upper().replace('-', '_')}")
