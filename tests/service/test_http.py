"""The rendered service as a process: under uvicorn, in production settings, over real HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.support.project import Project
from tests.support.running import (
    PASSWORD,
    SECRET,
    Client,
    mail_server,
    production,
    serving,
    tokens_of,
)

CONCERNS = [
    "template/{{ package_name }}/main.py.jinja",
    "template/{{ package_name }}/config.py.jinja",
    "template/{{ package_name }}/api/*",
    "template/{{ package_name }}/lifespan.py.jinja",
]

EMAIL = "ada@example.com"


def test_service_over_http(project: Project) -> None:
    with (
        production(project) as there,
        mail_server(project) as (smtp_url, mail),
        serving(project, {**there.env, "SMTP_URL": smtp_url}) as client,
    ):
        assert client.call("GET", "/health/live") == (200, {"status": "ok"})
        ready = {"status": "ok", "checks": {"postgres": "ok", "redis": "ok"}}
        assert client.call("GET", "/health/ready") == (200, ready)
        check_documents_are_closed(client)
        check_accounts(client, mail)
        assert client.call("GET", "/api/v1/customers")[0] == 403, "a stranger"
        there.servers.sql("UPDATE users SET is_staff = true")
        check_customers(client)
        check_knowledge(client)


def check_documents_are_closed(client: Client) -> None:
    """As nobody said otherwise."""
    for path in "/docs", "/redoc", "/openapi.json":
        assert client.call("GET", path)[0] == 404


def check_accounts(client: Client, mail: Callable[[], str]) -> None:
    """Register and log in; from then on the client sends its token."""
    assert client.call("GET", "/api/v1/customers")[0] == 401
    assert client.call("POST", "/api/v1/auth/register", {"email": EMAIL})[0] == 202
    found = re.search("The code is ([A-Za-z0-9_-]+)", mail())
    assert found
    chosen = {"token": found[1], "password": PASSWORD}
    assert client.call("POST", "/api/v1/auth/confirm", chosen)[0] == 204
    wrong = {"username": EMAIL, "password": "wrong horse"}
    assert client.call("POST", "/api/v1/auth/token", form=wrong)[0] == 401
    tokens = tokens_of(client, EMAIL)
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    status, me = client.call("GET", "/api/v1/auth/me")
    assert (status, me["email"]) == (200, EMAIL)
    kept = {"refresh_token": tokens["refresh_token"]}
    status, tokens = client.call("POST", "/api/v1/auth/refresh", kept)
    assert status == 200
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    assert client.call("GET", "/api/v1/auth/sessions")[0] == 200


def check_customers(client: Client) -> None:
    """Create, conflict, read, list in pages, update, delete."""
    status, created = client.call(
        "POST", "/api/v1/customers", {"full_name": "Zoë O'Neill", "email": "zoe@example.com"}
    )
    assert status == 201
    path = f"/api/v1/customers/{created['id']}"
    status, problem = client.call(
        "POST", "/api/v1/customers", {"full_name": "Zoë", "email": "ZOE@example.com"}
    )
    assert (status, problem["title"]) == (409, "Conflict")
    assert client.call("GET", path) == (200, created)
    status, updated = client.call("PATCH", path, {"full_name": "Zoë Grün"})
    assert (status, updated["full_name"]) == (200, "Zoë Grün")
    seen, page = [], "/api/v1/customers?limit=2"
    while page:
        status, listed = client.call("GET", page)
        assert status == 200
        seen += [item["id"] for item in listed["items"]]
        cursor = listed["next_cursor"]
        page = f"/api/v1/customers?limit=2&cursor={cursor}" if cursor else ""
    assert seen == sorted(set(seen))
    assert created["id"] in seen
    assert client.call("DELETE", path)[0] == 204
    assert client.call("GET", path)[0] == 404


def check_knowledge(client: Client) -> None:
    """What `ingest.py` stored is found."""
    status, found = client.call("GET", "/api/v1/knowledge/search?q=complaint&limit=3")
    assert status == 200
    assert 1 <= len(found["items"]) <= 3


def test_service_waits_for_its_servers(project: Project) -> None:
    """It starts without them, says that it is not ready, and shows no internals."""
    env: dict[str, str | None] = {
        "ENVIRONMENT": "production",
        "DATABASE_URL": "postgresql+asyncpg://nobody:hidden@127.0.0.1:1/nothing",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "JWT_SECRET": SECRET,
    }
    with serving(project, env) as client:
        assert client.call("GET", "/health/live")[0] == 200
        status, problem = client.call("GET", "/health/ready")
        assert status == 503
        assert "hidden" not in json.dumps(problem)


@pytest.mark.parametrize("missing", ["DATABASE_URL", "REDIS_URL", "JWT_SECRET"])
def test_production_refuses_to_start_on_defaults(missing: str, project: Project) -> None:
    env: dict[str, str | None] = {
        "ENVIRONMENT": "production",
        "DATABASE_URL": "postgresql://service:hidden@db.example/service",
        "REDIS_URL": "redis://redis.example/0",
        "JWT_SECRET": SECRET,
        missing: None,
    }
    done = project.run(project.python, "-c", "import app.main", env=env, status=1)
    assert missing in done.output
    assert "hidden" not in done.output
    assert SECRET not in done.output


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_examples_have_no_place_in_production(environment: str, project: Project) -> None:
    env: dict[str, str | None] = {
        "ENVIRONMENT": environment,
        "DATABASE_URL": "postgresql://service:hidden@127.0.0.1:1/service",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "JWT_SECRET": SECRET,
    }
    done = project.tool("app.seed_database", env=env, status=1)
    assert f"no place where ENVIRONMENT={environment}" in done.output
