"""A Valkey beside the embedded one, on a loopback port: what `TEST_REDIS_URL` names."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from tests.support.postgres import reserved_port
from tests.support.project import Project

DATABASES = 16


@dataclass(frozen=True)
class Redis:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]

    def url(self, database: int) -> str:
        """The URL of a numbered database on it."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def ask(self, database: int, *command: str | bytes) -> Any:
        """Send one command to a database, and give its answer."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as peer,
            peer.makefile("rb") as stream,
        ):
            for words in (("SELECT", str(database)), command):
                parts = [word.encode() if isinstance(word, str) else word for word in words]
                told = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
                peer.sendall(b"*%d\r\n%s" % (len(parts), told))
                answer = _answer(stream)
        return answer

    def held(self, database: int) -> dict[bytes, tuple[bytes, int]]:
        """All keys of a database, each as its bytes and the time at which it expires."""
        keys = self.ask(database, "KEYS", "*")
        return {
            key: (self.ask(database, "DUMP", key), self.ask(database, "PEXPIRETIME", key))
            for key in keys
        }


@contextmanager
def running(project: Project, *options: str) -> Iterator[Redis]:
    """Run a new, empty server: the program that the project's harness embeds."""
    code = "import tests; from tests.harness.servers import valkey; print(valkey._binary())"
    program = project.run(project.python, "-c", code).output.strip()
    with reserved_port() as port:
        process = subprocess.Popen(
            [
                program,
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--databases",
                str(DATABASES),
                *options,
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            yield Redis(port, process)
        finally:
            process.kill()
            process.wait()


def _answer(stream: BufferedReader) -> Any:
    line = stream.readline()
    kind, rest = line[:1], line[1:].strip()
    assert kind in (b"+", b":", b"$", b"*"), line
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return [_answer(stream) for _ in range(int(rest))]
    return stream.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
