"""The service itself: what it answers to bad requests, and while its servers are away or stall."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import os
import re
import signal
import statistics
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Render
from tests.support.command import run
from tests.support.embedded import Name, Servers, remove_clusters
from tests.support.machine import linux_only
from tests.support.project import Project
from tests.support.running import SECRET, Answer, Client, Environment, Service, production, serving
from tests.support.small import wait_until

PASSWORD = "correct horse battery staple"

# What no client may read in an error, and no log may hold.
INTERNALS = re.compile(
    r"Traceback|asyncpg|sqlalchemy|psycopg|redis\.|SELECT |INSERT |/site-packages/|\.py\b|\.sock"
    r"|postgresql|argon2|HS256|pydantic",
    re.IGNORECASE,
)

# Nothing here is about limits of calls, and the hashes guard nothing.
SETTINGS = {
    "RATE_LIMIT": "1000000000",
    "LOGIN_RATE_LIMIT": "1000000000",
    "ARGON2_TIME_COST": "1",
    "ARGON2_MEMORY_KIB": "32",
    "REDIS_TIMEOUT": "1",
    "DATABASE_CONNECT_TIMEOUT": "2",
    "DATABASE_COMMAND_TIMEOUT": "2",
}
POOL = 15  # DATABASE_POOL_SIZE and DATABASE_MAX_OVERFLOW, by default

numbers = itertools.count(1)


@dataclass(frozen=True)
class Production:
    """A project whose servers run, and the environment of its service."""

    project: Project
    servers: Servers
    env: Environment

    def idle(self) -> bool:
        """Whether the service has no session that does anything, and no more than its pool."""
        rows = self.servers.sql(
            "SELECT state FROM pg_stat_activity"
            " WHERE datname = 'service' AND pid <> pg_backend_pid()"
        )
        return len(rows) <= POOL + 5 and {state for (state,) in rows} <= {"idle"}

    def emails(self, pattern: str) -> Counter[str]:
        """The customers whose address matches, and how often each is there."""
        rows = self.servers.sql(f"SELECT email FROM customers WHERE email ~ '{pattern}'")
        return Counter(email for (email,) in rows)


@pytest.fixture(scope="module")
def there(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    directory = tmp_path_factory.mktemp("production")
    project = rendered().copy_to(directory / "service")
    with production(project) as (servers, env):
        yield Production(project, servers, {**env, **SETTINGS})
    remove_clusters(directory)


@pytest.fixture(scope="module")
def service(there: Production) -> Iterator[Service]:
    """The service; its client is logged in as somebody of the staff."""
    with serving(there.project, there.env) as service:
        service.headers["Authorization"] = f"Bearer {log_in(service, there, 'is_staff = true')}"
        yield service


def log_in(client: Client, there: Production, changes: str = "is_active = true") -> str:
    """Register somebody new, and make the account what `changes` say. Returns a token."""
    email = f"user-{next(numbers)}@example.org"
    account = {"email": email, "password": PASSWORD}
    assert client.call("POST", "/api/v1/auth/register", account)[0] == 202
    there.servers.sql(f"UPDATE users SET {changes} WHERE email = '{email}'")
    form = {"username": email, "password": PASSWORD}
    status, token = client.call("POST", "/api/v1/auth/token", form=form)
    assert status == 200
    found: str = token["access_token"]
    return found


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


# --- What the document promises ----------------------------------------------------------------

# Where an operation that needs an id may take it from. The document itself has no links.
LINKS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    (
        *("post /api/v1/customers", "201", "post /api/v1/conversations", "begin"),
        {"requestBody": {"customer_id": "$response.body#/id"}},
    ),
    (
        *("post /api/v1/conversations", "201"),
        *("post /api/v1/conversations/{conversation_id}/messages", "complain"),
        {
            "parameters": {"conversation_id": "$response.body#/id"},
            "requestBody": {"content": "This is unacceptable."},
        },
    ),
    (
        *("post /api/v1/conversations/{conversation_id}/messages", "202"),
        *("post /api/v1/escalations/{escalation_id}/assign", "assign"),
        {"parameters": {"escalation_id": "$response.body#/escalation_id"}},
    ),
    (
        *("post /api/v1/conversations/{conversation_id}/messages", "202"),
        *("post /api/v1/escalations/{escalation_id}/resolve", "resolve"),
        {"parameters": {"escalation_id": "$response.body#/escalation_id"}},
    ),
    (
        *("post /api/v1/conversations/{conversation_id}/messages", "202"),
        *("get /api/v1/conversations/{conversation_id}", "read"),
        {"parameters": {"conversation_id": "$response.body#/conversation_id"}},
    ),
]


def linked(document: dict[str, Any]) -> dict[str, Any]:
    """The API document, with LINKS."""

    def operation(name: str) -> dict[str, Any]:
        method, path = name.split()
        found: dict[str, Any] = document["paths"][path][method]
        return found

    for source, status, target, name, link in LINKS:
        links = operation(source)["responses"][status].setdefault("links", {})
        links[name] = {"operationId": operation(target)["operationId"], **link}
    return document


@dataclass(frozen=True)
class Effort:
    """How many requests schemathesis tries per operation, and how many sequences of requests."""

    requests: int
    sequences: int
    seed: int | None = None


def check_document(
    service: Service, there: Production, who: str, folder: Path, effort: Effort
) -> None:
    """Let schemathesis look for requests that the service does not answer as it says.

    With all of its checks.
    """
    settings = [
        f"generation.max-examples = {effort.requests}",
        f"phases.stateful.generation.max-examples = {effort.sequences}",
        'generation.database = "none"',
    ]
    if effort.seed is not None:
        settings.append(f"seed = {effort.seed}")
    changes = {
        "staff": "is_staff = true",
        "customer": "customer_id = (SELECT max(id) FROM customers)",
    }
    if who in changes:
        create(service, new_customer())
        token = log_in(service, there, changes[who])
        settings.append(f'headers.Authorization = "Bearer {token}"')
    (folder / "schemathesis.toml").write_text("\n".join(settings) + "\n")
    document = folder / "openapi.json"
    document.write_text(json.dumps(linked(service.call("GET", "/openapi.json")[1])))
    done = run(
        *(sys.executable, "-m", "schemathesis.cli", "run", document, "--url", service.base),
        *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
        cwd=folder,
        timeout=1800,
    )
    tested = re.search(r"Tested: (\d+)", done.output)
    assert tested
    assert int(tested[1]) == 17, "each operation"
    followed = re.search(r"API Links: +(\d+) covered", done.output)
    assert followed
    assert (int(followed[1]) >= len(LINKS)) == (who != "nobody")


@pytest.mark.parametrize("who", ["nobody", "staff"])
def test_each_answer_is_as_documented(
    who: str, service: Service, there: Production, tmp_path: Path
) -> None:
    check_document(service, there, who, tmp_path, Effort(requests=3, sequences=20, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["nobody", "customer", "staff"])
def test_each_of_many_answers_is_as_documented(
    who: str, service: Service, there: Production, tmp_path: Path
) -> None:
    check_document(service, there, who, tmp_path, Effort(requests=500, sequences=300))


# --- Login -------------------------------------------------------------------------------------


def test_a_login_takes_as_long_whoever_tries(there: Production) -> None:
    """Wrong password, unknown user, account closed: with hashes as costly as in production.

    Tried in turn, so that the machine's other work slows all of them alike. Without a hash to
    check, an answer takes a twentieth of the time.
    """
    costly = {name: None for name in SETTINGS if name.startswith("ARGON2")}
    with serving(there.project, {**there.env, **costly}) as service:
        for name, changes in ("known", "is_active = true"), ("closed", "is_active = false"):
            account = {"email": f"{name}@example.org", "password": PASSWORD}
            service.call("POST", "/api/v1/auth/register", account)
            there.servers.sql(f"UPDATE users SET {changes} WHERE email = '{account['email']}'")
        times: dict[str, list[float]] = {"known": [], "closed": [], "unknown": []}
        for _ in range(7):
            for name, taken in times.items():
                form = {"username": f"{name}@example.org", "password": "wrong horse"}
                begun = time.perf_counter()
                assert service.call("POST", "/api/v1/auth/token", form=form)[0] == 401
                taken.append(time.perf_counter() - begun)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(medians)
    assert max(medians.values()) < 2 * min(medians.values()), medians


def jwt(header: dict[str, Any], claims: dict[str, Any], secret: str = SECRET) -> str:
    """A token as RFC 7515 describes it, whatever it says."""

    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    signed = b".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    digests = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
    digest = digests.get(header["alg"])
    signature = hmac.new(secret.encode(), signed, digest).digest() if digest else b""
    return b".".join([signed, encoded(signature)]).decode()


HEADER = {"alg": "HS256", "typ": "JWT"}
NOW = int(time.time())
CLAIMS = {"sub": "1", "aud": "support-desk", "iat": NOW, "exp": NOW + 3600}

FORGED = {
    "no signature": jwt({"alg": "none"}, CLAIMS),
    "no signature, oddly spelt": jwt({"alg": "nOnE"}, CLAIMS),
    "signature cut off": jwt(HEADER, CLAIMS).rpartition(".")[0] + ".",
    "another key": jwt(HEADER, CLAIMS, "x" * 64),
    "empty key": jwt(HEADER, CLAIMS, ""),
    "another algorithm": jwt(HEADER | {"alg": "HS512"}, CLAIMS),
    "a key that it brings": jwt(
        HEADER | {"jwk": {"kty": "oct", "k": "eHh4"}, "jku": "http://127.0.0.1:1/keys"},
        CLAIMS,
        "xxx",
    ),
    "a key from a file": jwt(HEADER | {"kid": "/dev/null"}, CLAIMS, ""),
    "critical extension": jwt(HEADER | {"crit": ["exp"]}, CLAIMS),
    "expired": jwt(HEADER, CLAIMS | {"iat": NOW - 7200, "exp": NOW - 3600}),
    "not yet valid": jwt(HEADER, CLAIMS | {"nbf": NOW + 3600}),
    "never expires": jwt(HEADER, {name: CLAIMS[name] for name in ("sub", "aud", "iat")}),
    "for another service": jwt(HEADER, CLAIMS | {"aud": "another"}),
    "of SQL": jwt(HEADER, CLAIMS | {"sub": "1 OR 1=1"}),
    "of a number": jwt(HEADER, CLAIMS | {"sub": 1}),
    "of a list": jwt(HEADER, CLAIMS | {"sub": ["1"]}),
    "of nobody": jwt(HEADER, CLAIMS | {"sub": "999999999"}),
    "of too many digits": jwt(HEADER, CLAIMS | {"sub": "9" * 5000}),
    "not JSON": "eyJh.eyJh.eyJh",
    "not a token": "x",
    "long": "x" * 8000,
    "not ASCII": "t\u00f6k\u00e4n",
}


def test_the_forger_of_tokens_knows_how_to_make_one(service: Service, there: Production) -> None:
    rows = there.servers.sql("SELECT max(id) FROM users")
    token = jwt(HEADER, CLAIMS | {"sub": str(rows[0][0])})
    client = service.client(Authorization=f"Bearer {token}")
    assert client.call("GET", "/api/v1/auth/me")[0] == 200


@pytest.mark.parametrize("token", FORGED.values(), ids=list(FORGED))
def test_a_token_that_is_not_ours_is_refused(token: str, service: Service) -> None:
    client = service.client(Authorization=f"Bearer {token}")
    answer = client.send("GET", "/api/v1/customers")
    assert (answer.status, answer.body["detail"]) == (401, "The token is not valid.")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


# --- Bodies that nobody should send ------------------------------------------------------------

JSON, FORM = "application/json", "application/x-www-form-urlencoded"

MALFORMED: dict[str, tuple[str, bytes, str, set[int]]] = {
    "nothing": ("customers", b"", JSON, {422}),
    "not JSON": ("customers", b"{", JSON, {422}),
    "not an object": ("customers", b"[1]", JSON, {422}),
    "not UTF-8": ("customers", b'{"full_name": "\xff"}', JSON, {400, 422}),
    "UTF-16": ("customers", '{"full_name": "x"}'.encode("utf-16"), JSON, {400, 422}),
    "a lone surrogate": (
        "customers",
        b'{"full_name": "\\ud800", "email": "a@example.org"}',
        JSON,
        {422},
    ),
    "a NUL": ("customers", b'{"full_name": "a\\u0000", "email": "a@example.org"}', JSON, {422}),
    "nested too deeply": ("customers", b"[" * 200_000, JSON, {400, 422}),
    "a number without end": (
        "conversations",
        b'{"customer_id": ' + b"9" * 90_000 + b"}",
        JSON,
        {400, 422},
    ),
    "not a number": ("conversations", b'{"customer_id": NaN}', JSON, {422}),
    "infinity": ("conversations", b'{"customer_id": 1e999}', JSON, {422}),
    "too large": ("customers", b" " * 1_048_577, JSON, {413}),
    "no content type": ("customers", b'{"full_name": "x"}', "", {422}),
    "another content type": ("customers", b"<x/>", "text/xml", {422}),
    "a form without names": ("auth/token", b"&&&===", FORM, {422}),
    "a form that is not UTF-8": ("auth/token", b"username=%FF%FE&password=%FF", FORM, {401}),
    "a form of many fields": ("auth/token", b"a=1&" * 20_000, FORM, {400, 422}),
    "multipart without an end": (
        "auth/token",
        b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\nada',
        "multipart/form-data; boundary=x",
        {400, 422},
    ),
    "multipart without a boundary": ("auth/token", b"--x", "multipart/form-data", {400, 422}),
    "a file for a name": (
        "auth/token",
        b'--x\r\nContent-Disposition: form-data; name="username"; filename="f"\r\n\r\nada\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        {422},
    ),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_body_is_refused(
    case: tuple[str, bytes, str, set[int]], service: Service
) -> None:
    path, body, kind, statuses = case
    answer = service.send("POST", f"/api/v1/{path}", body, {"Content-Type": kind})
    assert answer.status in statuses, answer
    assert_tells_nothing(answer)


def test_a_body_of_unknown_length_is_limited(service: Service) -> None:
    """Sent in chunks, without a length that could be looked at before."""
    token = service.headers["Authorization"]
    head = f"POST /api/v1/customers HTTP/1.1\nHost: x\nAuthorization: {token}\n"
    with service.connect(f"{head}Transfer-Encoding: chunked\n\n") as connection:
        with suppress(ConnectionError):  # it need not read all of it
            for _ in range(20):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"


SQL = [
    "'; DROP TABLE customers; --",
    "' OR '1'='1",
    "1; SELECT pg_sleep(30)",
    "\\'; COPY customers TO PROGRAM 'id'; --",
    "$$; DROP TABLE users; $$",
    "%(id)s :id $1 {0} %s %%",
    "x' UNION SELECT password_hash FROM users --",
]


@pytest.mark.parametrize("text", SQL)
def test_sql_is_text_like_any_other(text: str, service: Service, there: Production) -> None:
    quoted = urllib.parse.quote(text, safe="")
    made = create(service, {**new_customer(), "full_name": text})
    assert (made.status, made.body["full_name"]) == (201, text)
    conversation = begin_conversation(service)
    asked = {
        "email": ("POST", "/api/v1/customers", {"full_name": "x", "email": f"{text}@x.org"}, 422),
        "phone": ("PATCH", f"/api/v1/customers/{made.body['id']}", {"phone": text}, 422),
        "id": ("GET", f"/api/v1/customers/{quoted}", None, 422),
        "cursor": ("GET", f"/api/v1/customers?cursor={quoted}", None, 422),
        "limit": ("GET", f"/api/v1/customers?limit={quoted}", None, 422),
        "question": ("GET", f"/api/v1/knowledge/search?q={quoted}", None, 200),
        "status": ("GET", f"/api/v1/escalations?status={quoted}", None, 422),
        "message": ("POST", f"{conversation}/messages", {"content": text}, 200),
        "registration": ("POST", "/api/v1/auth/register", {"email": text, "password": text}, 422),
        "resolution": ("POST", "/api/v1/escalations/999999/resolve", {"content": text}, 404),
    }
    before = there.servers.sql("SELECT count(*) FROM customers")
    for field_, (method, path, body, status) in asked.items():
        answer = service.send(
            method, path, json.dumps(body).encode() if body else None, {"Content-Type": JSON}
        )
        assert answer.status == status, f"{field_}: {answer}"
        if status >= 400:
            assert_tells_nothing(answer)
    for form in {"username": text, "password": "x"}, {"username": "x", "password": text}:
        status, _ = service.call("POST", "/api/v1/auth/token", form=form)
        assert status == 401
    assert there.servers.sql("SELECT count(*) FROM customers") == before
    _, read = service.call("GET", conversation)
    assert [m["content"] for m in read["messages"] if m["role"] == "customer"] == [text]


def assert_tells_nothing(answer: Answer) -> None:
    """An error is a problem with an id, without a trace of what the service is made of."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["status"] == answer.status
    assert answer.body["request_id"] == answer.headers["X-Request-ID"]
    shown = json.dumps({name: answer.body[name] for name in answer.body if name != "errors"})
    assert not INTERNALS.search(shown), shown
    for error in answer.body.get("errors", []):
        assert not INTERNALS.search(error["message"]), error
