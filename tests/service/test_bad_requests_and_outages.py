"""The service itself: what it answers to bad requests, and while its servers are away or stall."""

from __future__ import annotations

import base64
import hashlib
import hmac
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

from tests.support.command import run
from tests.support.embedded import Name
from tests.support.machine import linux_only
from tests.support.running import (
    OTHERS,
    PASSWORD,
    POOL,
    SECRET,
    SETTINGS,
    Answer,
    Production,
    Service,
    begin_conversation,
    command,
    create,
    log_in,
    mail_server,
    new_account,
    new_customer,
    serving,
    tokens_of,
)
from tests.support.small import wait_until
from tests.support.tiers import first

CONCERNS = [
    "template/*errors.py*",
    "template/*middleware.py",
    "template/*rate_limit.py*",
    "template/*redis_client.py*",
    "template/*security.py*",
    "template/*accounts.py*",
]

# What no client may read in an error, and no log may hold.
INTERNALS = re.compile(
    r"Traceback|asyncpg|sqlalchemy|psycopg|redis\.|SELECT |INSERT |/site-packages/|\.py\b|\.sock"
    r"|postgresql|argon2|HS256|pydantic",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def service(there: Production) -> Iterator[Service]:
    """The service; its client is logged in as somebody of the staff."""
    with (
        mail_server(there.project) as (smtp_url, _),
        serving(there.project, {**there.env, "SMTP_URL": smtp_url}) as service,
    ):
        service.headers["Authorization"] = f"Bearer {log_in(service, there, 'is_staff = true')}"
        yield service


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
        *("post /api/v1/escalations/{escalation_id}/take-over", "take over"),
        {"parameters": {"escalation_id": "$response.body#/escalation_id"}},
    ),
    (
        *("post /api/v1/conversations/{conversation_id}/messages", "202"),
        *("get /api/v1/conversations/{conversation_id}", "read"),
        {"parameters": {"conversation_id": "$response.body#/conversation_id"}},
    ),
    (
        *("post /api/v1/conversations/{conversation_id}/messages", "202"),
        *("get /api/v1/conversations/{conversation_id}/messages", "read all"),
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
        # What it makes up would take the place of LINKS in the few sequences of a quick run.
        "phases.stateful.inference.algorithms = []",
        "phases.stateful.max-steps = 15",
    ]
    if effort.seed is not None:
        settings.append(f"seed = {effort.seed}")
    changes = {
        "staff": "is_staff = true",
        "customer": "customer_id = (SELECT max(id) FROM customers)",
        "stranger": "is_active = true",
    }
    if who in changes:
        create(service, new_customer())
        token = log_in(service, there, changes[who])
        # It finds out how to log out, and would go on as nobody.
        rows = there.servers.sql("SELECT max(id) FROM user_sessions")
        there.servers.sql(
            "CREATE OR REPLACE RULE stay AS ON DELETE TO user_sessions"
            f" WHERE OLD.id = {rows[0][0]} DO INSTEAD NOTHING"
        )
        settings.append(f'headers.Authorization = "Bearer {token}"')
    # It tries the same key for several requests, and invents what to match.
    for names, status in (
        ("create_customer|create_conversation|send_message", 422),
        (
            "update_customer|delete_customer",
            412,
        ),
    ):
        settings += [
            "[[operations]]",
            f'include-operation-id-regex = "^({names})$"',
            "[operations.checks.positive_data_acceptance]",
            f'expected-statuses = ["2xx", "401", "403", "404", "409", "{status}"]',
        ]
    (folder / "schemathesis.toml").write_text("\n".join(settings) + "\n")
    document = folder / "openapi.json"
    document.write_text(json.dumps(linked(service.call("GET", "/openapi.json")[1])))
    try:
        done = run(
            *(sys.executable, "-m", "schemathesis.cli", "run", document, "--url", service.base),
            *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
            cwd=folder,
            timeout=1800,
        )
    finally:
        there.servers.sql("DROP RULE IF EXISTS stay ON user_sessions")
    tested = re.search(r"Tested: (\d+)", done.output)
    assert tested
    assert int(tested[1]) == 28, "each operation"
    followed = re.search(r"API Links: +(\d+) covered", done.output)
    assert followed
    assert (int(followed[1]) >= len(LINKS)) == (who == "staff"), followed[0]


@pytest.mark.thorough
def test_each_answer_is_as_documented(service: Service, there: Production, tmp_path: Path) -> None:
    check_document(service, there, "staff", tmp_path, Effort(requests=3, sequences=15, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["nobody", "stranger", "customer", "staff"])
def test_each_of_many_answers_is_as_documented(
    who: str, service: Service, there: Production, tmp_path: Path
) -> None:
    check_document(service, there, who, tmp_path, Effort(requests=15, sequences=40))


# --- Login -------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_login_takes_as_long_whoever_tries(there: Production) -> None:
    """Wrong password, unknown user, account closed: with hashes as costly as in production.

    Tried in turn, so that the machine's other work slows all of them alike. Without a hash to
    check, an answer takes a twentieth of the time.
    """
    costly = {name: None for name in SETTINGS if name.startswith("ARGON2")}
    with serving(there.project, {**there.env, **costly}) as service:
        known, closed = new_account(there), new_account(there)
        for email in known, closed:
            tokens_of(service, email)  # from now on its hash costs as much as all others
        there.servers.sql(f"UPDATE users SET is_active = false WHERE email = '{closed}'")
        names = {"known": known, "closed": closed, "unknown": "unknown@example.org"}
        times: dict[str, list[float]] = {"known": [], "closed": [], "unknown": []}
        for _ in range(5):
            for name, taken in times.items():
                form = {"username": names[name], "password": "wrong horse"}
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
CLAIMS = {"sub": "1", "sid": "0" * 32, "aud": "support-desk", "iat": NOW, "exp": NOW + 3600}

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
    "never expires": jwt(HEADER, {name: CLAIMS[name] for name in ("sub", "sid", "aud", "iat")}),
    "of no login": jwt(HEADER, {name: CLAIMS[name] for name in ("sub", "aud", "iat", "exp")}),
    "of a login that is over": jwt(HEADER, CLAIMS),
    "of an odd login": jwt(HEADER, CLAIMS | {"sid": ["1"]}),
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
    email = new_account(there)
    tokens_of(service, email)
    query = "FROM user_sessions s JOIN users u ON u.id = user_id WHERE email"
    [[user, login]] = there.servers.sql(f"SELECT u.id::text, family::text {query} = '{email}'")
    token = jwt(HEADER, CLAIMS | {"sub": user, "sid": login.replace("-", "")})
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
        b'--x\r\nContent-Disposition: form-data; name="username"; filename="f"\r\n\r\nx\r\n--x--',
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
    _, read = service.call("GET", f"{conversation}/messages")
    assert [m["content"] for m in read["items"] if m["role"] == "customer"] == [text]


def assert_tells_nothing(answer: Answer) -> None:
    """An error is a problem with an id, without a trace of what the service is made of."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["status"] == answer.status
    assert answer.body["request_id"] == answer.headers["X-Request-ID"]
    shown = json.dumps({name: answer.body[name] for name in answer.body if name != "errors"})
    assert not INTERNALS.search(shown), shown
    for error in answer.body.get("errors", []):
        assert not INTERNALS.search(error["message"]), error


# --- Servers that are away, or stall -----------------------------------------------------------


@dataclass
class Load:
    """Clients that write without a pause, and what became of each thing they wrote."""

    service: Service
    name: str
    customers: dict[str, int | None] = field(default_factory=dict)
    """Of each address its status; None where there was no answer at all."""
    messages: list[tuple[int | None, Any]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def _write(self, conversation: str | None) -> None:
        while not self._ended.is_set():
            values = new_customer(self.name)
            try:
                self.customers[values["email"]] = create(self.service, values).status
            except OSError:
                self.customers[values["email"]] = None
            if conversation:
                question = {"content": "How do I freeze my lost card?"}
                try:
                    sent = self.service.call("POST", f"{conversation}/messages", question)
                    self.messages.append(sent)
                except OSError as error:
                    self.messages.append((None, error))

    @contextmanager
    def running(self, clients: int = 12) -> Iterator[None]:
        """Until the end of the block; some of the clients have a conversation, too."""
        conversations = [begin_conversation(self.service) for _ in range(4)]
        chosen = conversations + [None] * (clients - len(conversations))
        with ThreadPoolExecutor(clients) as pool:
            ends = [pool.submit(self._write, conversation) for conversation in chosen]
            try:
                self.wait_for(201)
                yield
            finally:
                self._ended.set()
        for end in ends:
            end.result()

    def wait_for(self, status: int) -> None:
        """Wait until some more writes of each kind end in this way."""

        def seen() -> tuple[int, int]:
            talked = 200 if status == 201 else status
            written = list(self.customers.values()).count(status)
            return written, [found for found, _ in list(self.messages)].count(talked)

        customers, messages = seen()
        wait_until(
            lambda: seen()[0] >= customers + 10 and seen()[1] >= messages + 3,
            f"more answers {status}",
            timeout=120,
        )

    def nothing_is_lost(self, there: Production) -> None:
        """Each was answered; what was acknowledged is there once, what was refused once at most."""
        assert set(self.customers.values()) <= {201, 503}, Counter(self.customers.values())
        statuses = Counter(status for status, _ in self.messages)
        assert set(statuses) <= {200, 503}, statuses
        stored = there.emails(f"^{self.name}-")
        acknowledged = {email for email, status in self.customers.items() if status == 201}
        assert acknowledged <= set(stored)
        assert set(stored) <= set(self.customers)
        assert set(stored.values()) == {1}
        replies = {
            body["reply_id"]: body["content"] for status, body in self.messages if status == 200
        }
        found = there.servers.sql(
            "SELECT r.id, r.content FROM messages r JOIN messages m ON m.id = r.in_reply_to_id"
        )
        assert replies.items() <= {(number, content) for number, content in found}
        assert len(replies) == statuses[200], "each message has a reply of its own"
        print(f"customers: {Counter(self.customers.values())}; messages: {statuses}")


def without(name: Name, service: Service, load: Load) -> None:
    """See that it is said, and what becomes of requests: without Redis they go on."""
    status, said = service.call("GET", "/health/ready")
    needed = name == "postgres"
    assert (status, said["checks"][name]) == (503 if needed else 200, "failed")
    load.wait_for(503 if needed else 201)
    if not needed:
        form = {"username": "somebody@example.org", "password": PASSWORD}
        assert service.call("POST", "/api/v1/auth/token", form=form)[0] == 503


def restart(name: Name, how: signal.Signals) -> Callable[[Service, Production, Load], None]:
    """Stop a server in this way, and start it when the service has said that it is away."""

    def act(service: Service, there: Production, load: Load) -> None:
        there.servers.stop(name, how)
        try:
            assert service.call("GET", "/health/live")[0] == 200
            without(name, service, load)
        finally:
            there.servers.start(name)

    return act


def freeze(name: Name) -> Callable[[Service, Production, Load], None]:
    """Let a server stall, with its connections open: the service gives up, and waits for it."""

    def act(service: Service, there: Production, load: Load) -> None:
        with there.servers.frozen(name):
            without(name, service, load)

    return act


def end_sessions(end: Callable[[Production], object]) -> Callable[..., None]:
    """Take the service's connections away while the server stays; several times."""

    def act(_: Service, there: Production, load: Load) -> None:
        for _time in range(3):
            end(there)
            load.wait_for(201)

    return act


def kill_a_session(there: Production) -> None:
    """As the kernel does when memory is short: Postgres ends all the others too, and recovers."""
    rows = there.servers.sql(f"SELECT min(pid) {OTHERS}")
    os.kill(int(rows[0][0]), signal.SIGKILL)


def end_all_sessions(there: Production) -> None:
    """As an administrator does, or a fail-over."""
    there.servers.sql(f"SELECT pg_terminate_backend(pid) {OTHERS}")


OUTAGES: dict[str, Callable[[Service, Production, Load], None]] = {
    "Postgres stopped": restart("postgres", signal.SIGTERM),
    "Postgres killed": restart("postgres", signal.SIGKILL),
    "Postgres stalls": freeze("postgres"),
    "a session killed": end_sessions(kill_a_session),
    "all sessions ended": end_sessions(end_all_sessions),
    "Redis stopped": restart("redis", signal.SIGTERM),
    "Redis killed": restart("redis", signal.SIGKILL),
    "Redis stalls": freeze("redis"),
}


@linux_only
@pytest.mark.parametrize("name", first(4, OUTAGES))
def test_an_outage_under_load_is_survived(name: str, service: Service, there: Production) -> None:
    """503 while a server is away, never 500, never silence; afterwards all is as before.

    The service is not restarted. Its log explains what happened, without a customer's data.
    """
    load = Load(service, re.sub("[^a-z]", "", name.lower()))
    logged = len(service.log.read_text())
    with load.running():
        OUTAGES[name](service, there, load)
        load.wait_for(201)
    wait_until(lambda: service.call("GET", "/health/ready")[0] == 200, "ready again", timeout=60)
    load.nothing_is_lost(there)
    wait_until(there.idle, "no session is busy", timeout=60)
    log = service.log.read_text()[logged:]
    assert "unhandled error" not in log, log[-3000:]
    assert "@example.org" not in log
    assert "lost card" not in log


# --- Many clients, slow clients, clients that leave --------------------------------------------


def test_two_hundred_clients_lose_nothing(service: Service, there: Production) -> None:
    """At once on one process: what it acknowledges is there, what it can't do it says."""

    def write(_: int) -> dict[str, int]:
        return {
            values["email"]: create(service, values).status
            for values in (new_customer("crowd") for _ in range(3))
        }

    with ThreadPoolExecutor(200) as pool:
        statuses = {
            email: status for each in pool.map(write, range(200)) for email, status in each.items()
        }
    print(Counter(statuses.values()))
    assert len(statuses) == 600
    assert set(statuses.values()) <= {201, 503}, Counter(statuses.values())
    stored = there.emails("^crowd-")
    assert {email for email, status in statuses.items() if status == 201} == set(stored)
    assert set(stored.values()) == {1}
    wait_until(there.idle, "no session is busy")


HEAD = """\
POST /api/v1/customers HTTP/1.1
Host: service
Authorization: {}
Content-Type: application/json
Content-Length: {}

"""


def test_slow_clients_hold_nothing_that_others_need(service: Service, there: Production) -> None:
    """More of them than there are connections to Postgres, stuck in a header or in a body."""
    head = HEAD.format(service.headers["Authorization"], 100)
    beginnings = [head[:40], head + "{"] * 50
    slow = [service.connect(beginning) for beginning in beginnings]
    try:
        wait_until(there.idle, "no session is busy")
        assert create(service, new_customer("quick")).status == 201
    finally:
        for connection in slow:
            connection.close()
    wait_until(there.idle, "no session is busy")
    assert create(service, new_customer("quick")).status == 201


def test_clients_that_leave_take_no_connection_with_them(
    service: Service, there: Production
) -> None:
    """In the middle of a request, while it waits in Postgres or for a connection to it."""
    logged = len(service.log.read_text())
    with there.customers_locked():
        leaving = []
        for _ in range(2 * POOL):
            body = json.dumps(new_customer("leaver"))
            head = HEAD.format(service.headers["Authorization"], len(body))
            leaving.append(service.connect(head + body))
        wait_until(lambda: there.waiting() == POOL, "all connections wait")
        for connection in leaving:
            connection.close()
    wait_until(there.idle, "no session is busy")
    with ThreadPoolExecutor(POOL) as pool:
        answers = pool.map(lambda _: create(service, new_customer("stayer")), range(2 * POOL))
        assert {answer.status for answer in answers} == {201}
    assert "unhandled error" not in service.log.read_text()[logged:]


def test_requests_in_flight_end_before_the_service_does(there: Production) -> None:
    """SIGTERM: no new request, an answer for each that has begun, no session left behind."""
    env = {**there.env, "DATABASE_COMMAND_TIMEOUT": "60"}
    with serving(there.project, env) as service, ThreadPoolExecutor(5) as pool:
        service.headers["Authorization"] = f"Bearer {log_in(service, there, 'is_staff = true')}"
        with there.customers_locked():
            begun = [pool.submit(create, service, new_customer("last")) for _ in range(5)]
            wait_until(lambda: there.waiting() == 5, "the requests wait")
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: refuses(service), "no new connection is taken")
        assert [request.result().status for request in begun] == [201] * 5
        assert service.process.wait(timeout=30) in (0, -signal.SIGTERM)
        assert "Traceback" not in service.log.read_text()
    assert len(there.emails("^last-")) == 5


def test_a_stalled_client_does_not_keep_the_service_from_stopping(there: Production) -> None:
    """The container's command bounds it, here to less than there."""
    assert "--timeout-graceful-shutdown" in command(there.project)
    options = ("--timeout-graceful-shutdown", "2")
    with serving(there.project, there.env, *options) as service:
        head = HEAD.format("Bearer x", 100)
        with service.connect(head + "{"), service.connect(head[:40]):
            wait_until(lambda: service.call("GET", "/health/live")[0] == 200, "it serves others")
            service.stop()


def refuses(service: Service) -> bool:
    """Whether the service takes no connection any more."""
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return True
    return False
