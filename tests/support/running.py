"""A rendered service as a process, as its container runs it, and clients that call it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

from tests.support.command import overlaid
from tests.support.embedded import Servers, servers
from tests.support.project import Project

Environment = Mapping[str, str | None]

SECRET = "a-secret-of-these-tests-and-of-nothing-else"


@dataclass(frozen=True)
class Answer:
    """What the service answered, also when that is an error."""

    status: int
    body: Any
    headers: Message


@dataclass
class Client:
    """Calls one service, each time on a connection of its own."""

    base: str
    headers: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None, form: Any = None) -> tuple[int, Any]:
        """Make a request. Returns the status and the decoded answer."""
        data, kind = None, "application/json"
        if form is not None:
            data, kind = urllib.parse.urlencode(form).encode(), "application/x-www-form-urlencoded"
        elif body is not None:
            data = json.dumps(body).encode()
        answer = self.send(method, path, data, {"Content-Type": kind})
        return answer.status, answer.body

    def send(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Make a request with this very body.

        Raises:
            OSError: there is no answer; `TimeoutError` if the time is over.
        """
        sent = {**self.headers, **(headers or {})}
        request = urllib.request.Request(self.base + path, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, json.loads(answer.read() or "null"), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.loads(error.read() or "null"), error.headers)

    @property
    def address(self) -> tuple[str, int]:
        """Where the service listens."""
        parts = urllib.parse.urlsplit(self.base)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def connect(self, request: str = "") -> socket.socket:
        """A connection of the test's own, with the beginning of a request, or all of it, sent."""
        connection = socket.create_connection(self.address, timeout=60)
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection


@dataclass
class Service(Client):
    """A client of a service, and its process."""

    process: subprocess.Popen[bytes] = field(kw_only=True)
    log: Path = field(kw_only=True)

    def client(self, **headers: str) -> Client:
        """Another client of the same service."""
        return Client(self.base, headers)

    def stop(self) -> None:
        """Stop it as a container does, and see it stop in order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert "Finished server process" in self.log.read_text()


@contextmanager
def production(project: Project) -> Iterator[tuple[Servers, Environment]]:
    """Run the servers of a production service, with a database that is migrated and filled.

    Gives the servers, and the service's environment.
    """
    with servers(project) as running:
        env: dict[str, str | None] = {
            **running.urls,
            "ENVIRONMENT": "production",
            "JWT_SECRET": SECRET,
        }
        project.tool("alembic", "upgrade", "head", env=env)
        project.tool("app.coordinator.setup", env=env)
        project.tool("app.seed_database", env=env)
        project.run(project.python, "ingest.py", env=env)
        yield running, env


@contextmanager
def serving(project: Project, env: Environment, *options: str) -> Iterator[Service]:
    """Run the service with the command of its container, and stop it unless that was done.

    `options` come after those of the container, so they win.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = project.path.with_name(f"uvicorn-{port}.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(project.python), "-m", *command(project), "--port", str(port), *options],
            cwd=project.path,
            env=overlaid(env),
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(port, process)
        service = Service(f"http://127.0.0.1:{port}", process=process, log=log)
        yield service
        if process.poll() is None:
            service.stop()
            assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
        lines = log.read_text().splitlines()
        print("\n".join(line for line in lines if '"message": "request"' not in line)[-20_000:])


def command(project: Project) -> list[str]:
    """What the image runs, without the address."""
    (words,) = re.findall(r"^CMD (\[.*\])$", (project.path / "Dockerfile").read_text(), re.M)
    found: list[str] = json.loads(words)
    for option in ("--host", "--port"):
        at = found.index(option)
        del found[at : at + 2]
    return found


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the service accepts connections."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the service does not listen")
