"""A rendered service as a process, as its container runs it, and clients that call it."""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

from tests.support.command import overlaid
from tests.support.embedded import Servers, servers
from tests.support.postgres import reserved_port
from tests.support.project import Project

Environment = Mapping[str, str | None]

SECRET = "a-secret-of-these-tests-and-of-nothing-else"
PASSWORD = "correct horse battery staple"
# Of PASSWORD, as cheap as argon2 gets. A login replaces it by one that costs what the settings say.
PASSWORD_HASH = (
    "$argon2id$v=19$m=8,t=1,p=1$jgbE3RPHHarkTBcO4hmaqQ$T1oQACr1ePJ1j+gVCmc0ZdgX8aND1HTpjDP7sfJ2Cuo"
)

# Nothing here is about limits of calls, and the hashes guard nothing.
SETTINGS = {
    "RATE_LIMIT": "1000000000",
    "LOGIN_RATE_LIMIT": "1000000000",
    "LOGIN_CLIENT_LIMIT": "1000000000",
    "LOGIN_ACCOUNT_LIMIT": "1000000000",
    "MAIL_CLIENT_LIMIT": "1000000000",
    "MAIL_ADDRESS_LIMIT": "1000000000",
    "HASH_QUEUE": "1000",
    "API_DOCUMENTS": "true",
    "JWT_LIFETIME_SECONDS": "36000",
    "ARGON2_TIME_COST": "1",
    "ARGON2_MEMORY_KIB": "32",
    "REDIS_TIMEOUT": "1",
    "DATABASE_CONNECT_TIMEOUT": "2",
    "DATABASE_COMMAND_TIMEOUT": "2",
}
# The service's sessions.
OTHERS = "FROM pg_stat_activity WHERE datname = 'service' AND pid <> pg_backend_pid()"
POOL = 15  # DATABASE_POOL_SIZE and DATABASE_MAX_OVERFLOW, by default

numbers = itertools.count(1)


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


@dataclass(frozen=True)
class Production:
    """A project whose servers run, and the environment of its service."""

    project: Project
    servers: Servers
    env: Environment

    def idle(self) -> bool:
        """Whether the service has no session that does anything, and no more than its pool."""
        rows = self.servers.sql(f"SELECT state {OTHERS}")
        return len(rows) <= POOL + 5 and {state for (state,) in rows} <= {"idle"}

    @contextmanager
    def customers_locked(self) -> Iterator[None]:
        """Keep others from writing to the table of customers."""
        self.servers.sql("BEGIN")
        self.servers.sql("LOCK TABLE customers IN EXCLUSIVE MODE")
        try:
            yield
        finally:
            self.servers.sql("ROLLBACK")

    def waiting(self) -> int:
        """How many sessions wait for a lock."""
        rows = self.servers.sql("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return int(rows[0][0])

    def emails(self, pattern: str) -> Counter[str]:
        """The customers whose address matches, and how often each is there."""
        rows = self.servers.sql(f"SELECT email FROM customers WHERE email ~ '{pattern}'")
        return Counter(email for (email,) in rows)


@contextmanager
def production(project: Project) -> Iterator[Production]:
    """Run the servers of a production service, with a database that is migrated and filled."""
    with servers(project) as running:
        env: dict[str, str | None] = {
            **running.urls,
            "ENVIRONMENT": "production",
            "JWT_SECRET": SECRET,
        }
        project.tool("alembic", "upgrade", "head", env=env)
        project.tool("app.coordinator.setup", env=env)
        project.tool("app.seed_database", env={**env, "ENVIRONMENT": "development"})
        project.run(project.python, "ingest.py", env=env)
        yield Production(project, running, env)


@contextmanager
def serving(project: Project, env: Environment, *options: str) -> Iterator[Service]:
    """Run the service with the command of its container, and stop it unless that was done.

    `options` come after those of the container, so they win.
    """
    with reserved_port() as port:
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


@contextmanager
def mail_server(project: Project) -> Iterator[tuple[str, Callable[[], str]]]:
    """Run a mail server. Gives its URL, and what tells all that has arrived."""
    with reserved_port() as port:
        handler = ("-c", "aiosmtpd.handlers.Debugging", "stdout")
        options = ["-m", "aiosmtpd", "-n", "-l", f"127.0.0.1:{port}", *handler]
        log = project.path.with_name(f"mail-{port}.log")
        with log.open("w") as output:
            process = subprocess.Popen(
                [str(project.python), "-u", *options], stdout=output, stderr=output
            )
        try:
            wait_for(port, process)
            yield f"smtp://127.0.0.1:{port}", log.read_text
        finally:
            process.kill()
            process.wait()


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


def new_account(there: Production, changes: str = "is_active = true") -> str:
    """The address of a new account with PASSWORD, which is as `changes` say."""
    email = f"user-{next(numbers)}@example.org"
    there.servers.sql(
        f"INSERT INTO users (email, password_hash) VALUES ('{email}', '{PASSWORD_HASH}');"
        f"UPDATE users SET {changes} WHERE email = '{email}'"
    )
    return email


def tokens_of(client: Client, email: str) -> dict[str, Any]:
    """Log in with PASSWORD."""
    form = {"username": email, "password": PASSWORD}
    status, tokens = client.call("POST", "/api/v1/auth/token", form=form)
    assert status == 200, tokens
    found: dict[str, Any] = tokens
    return found


def log_in(client: Client, there: Production, changes: str = "is_active = true") -> str:
    """Make an account that is as `changes` say. Returns an access token."""
    token: str = tokens_of(client, new_account(there, changes))["access_token"]
    return token


def new_customer(name: str = "somebody") -> dict[str, str]:
    return {"full_name": "Ada Lovelace", "email": f"{name}-{next(numbers)}@example.org"}


def create(client: Client, values: dict[str, str]) -> Answer:
    """Ask for a customer to be created."""
    sent = json.dumps(values).encode()
    return client.send("POST", "/api/v1/customers", sent, {"Content-Type": "application/json"})


def begin_conversation(client: Client) -> str:
    """The path of a new conversation of a new customer."""
    customer = create(client, new_customer()).body["id"]
    status, begun = client.call("POST", "/api/v1/conversations", {"customer_id": customer})
    assert status == 201
    return f"/api/v1/conversations/{begun['id']}"
