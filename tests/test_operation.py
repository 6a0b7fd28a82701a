"""A service in operation: many log in, several instances migrate, a table is locked."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.command import overlaid
from tests.support.embedded import servers
from tests.support.project import Project
from tests.support.running import (
    POOL,
    SETTINGS,
    Client,
    Environment,
    Production,
    Service,
    begin_conversation,
    create,
    log_in,
    new_account,
    new_customer,
    serving,
    tokens_of,
)
from tests.support.small import wait_until

# What SETTINGS changes for other tests: here logins cost what they cost, and are limited.
AS_IT_COMES = {
    name: None
    for name in SETTINGS
    if name.startswith(("ARGON2", "LOGIN", "HASH", "RATE", "MAIL", "REDIS"))
}


@contextmanager
def begun(project: Project, env: Environment, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command of the project's, that runs meanwhile."""
    process = subprocess.Popen(
        [str(project.python), "-m", *command],
        cwd=project.path,
        env=overlaid(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# In a process of its own: the clients of a test take turns in theirs.
PROBER = """\
import sys, threading, time, urllib.request
slowest = 0.0
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
while not ended.is_set():
    begun = time.perf_counter()
    urllib.request.urlopen(sys.argv[1], timeout=60).read()
    slowest = max(slowest, time.perf_counter() - begun)
    time.sleep(0.02)
print(slowest)
"""


def from_address(service: Service, address: str) -> Client:
    """A client that a proxy on this machine speaks for."""
    return service.client(**{"X-Forwarded-For": address})


@pytest.mark.slow  # it measures seconds, which other tests on the same cores take
def test_a_hundred_and_fifty_logins_keep_nobody_else_waiting(there: Production) -> None:
    """From one client with as many names: a user elsewhere, and the probe, hardly notice."""
    with serving(there.project, {**there.env, **AS_IT_COMES}) as service:
        user = new_account(there)
        elsewhere = from_address(service, "198.51.100.2")
        tokens_of(elsewhere, user)  # its hash costs what the settings say from now on

        def guess(number: int) -> int:
            form = {"username": f"nobody-{number}@example.org", "password": "wrong horse"}
            return from_address(service, "198.51.100.1").call(
                "POST", "/api/v1/auth/token", form=form
            )[0]

        prober = subprocess.Popen(
            [sys.executable, "-c", PROBER, service.base + "/health/live"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with ThreadPoolExecutor(150) as pool:
            guesses = [pool.submit(guess, number) for number in range(150)]
            time.sleep(0.1)
            begun_at = time.perf_counter()
            tokens_of(elsewhere, user)
            seconds = time.perf_counter() - begun_at
            statuses = Counter(each.result() for each in guesses)
        slowest = float(prober.communicate()[0])
        print(f"login {seconds:.2f} s, live {slowest:.2f} s, guesses {statuses}")
        assert set(statuses) <= {401, 429, 503}
        assert statuses[401] <= 30
        assert statuses[429] >= 120
        assert seconds < 3
        assert slowest < 0.5


def test_behind_a_proxy_each_client_is_one(there: Production) -> None:
    """Who guesses from one address keeps the user out from there, and not from home."""
    with serving(there.project, {**there.env, **AS_IT_COMES}) as service:
        user = new_account(there)
        guesser = from_address(service, "203.0.113.7")
        form = {"username": user, "password": "wrong horse"}
        statuses = [guesser.call("POST", "/api/v1/auth/token", form=form)[0] for _ in range(11)]
        assert statuses == [401] * 10 + [429]
        tokens_of(from_address(service, "203.0.113.8"), user)


def test_whom_no_proxy_speaks_for_is_not_believed(there: Production) -> None:
    env = {**there.env, **AS_IT_COMES, "FORWARDED_ALLOW_IPS": "192.0.2.1"}
    with serving(there.project, env) as service:
        form = {"username": new_account(there), "password": "wrong horse"}
        statuses = [
            from_address(service, f"203.0.113.{n}").call("POST", "/api/v1/auth/token", form=form)[0]
            for n in range(11)
        ]
        assert statuses == [401] * 10 + [429]


def test_a_locked_table_takes_no_instance_out_of_service(there: Production) -> None:
    with serving(there.project, {**there.env, "DATABASE_COMMAND_TIMEOUT": "60"}) as service:
        service.headers["Authorization"] = f"Bearer {log_in(service, there, 'is_staff = true')}"
        with ThreadPoolExecutor(20) as pool:
            with there.customers_locked():
                waiting = [pool.submit(create, service, new_customer()) for _ in range(20)]
                wait_until(lambda: there.waiting() == POOL, "all connections wait")
                for _ in range(3):
                    status, said = service.client().call("GET", "/health/ready")
                    assert (status, said["checks"]["postgres"]) == (200, "ok")
            assert {each.result().status for each in waiting} <= {201, 503}


def test_the_first_message_finds_the_assistant_warm(there: Production) -> None:
    with serving(there.project, there.env) as service:
        service.headers["Authorization"] = f"Bearer {log_in(service, there, 'is_staff = true')}"
        conversation = begin_conversation(service)
        wait_until(lambda: "the assistant is warm" in service.log.read_text(), "it is warm")
        begun_at = time.perf_counter()
        assert service.call("POST", f"{conversation}/messages", {"content": "Hello!"})[0] == 200
        assert time.perf_counter() - begun_at < 1


# --- Migrations ----------------------------------------------------------------------------------

READER = """\
import asyncio, asyncpg, sys, time
from sqlalchemy import make_url
from app.config import settings

async def main():
    url = make_url(settings.database_url)
    _, options = url.get_dialect()().create_connect_args(url)
    connection = await asyncpg.connect(**options)
    slowest = 0.0
    print("reading", flush=True)
    while time.monotonic() < end:
        begun = time.perf_counter()
        await connection.fetch("SELECT count(*) FROM customers")
        slowest = max(slowest, time.perf_counter() - begun)
        await asyncio.sleep(0.02)
    print(slowest)

end = time.monotonic() + float(sys.argv[1])
asyncio.run(main())
"""


@pytest.fixture
def unmigrated(project: Project) -> Iterator[Production]:
    """Servers with an empty database."""
    with servers(project) as running:
        yield Production(project, running, {**running.urls, "ENVIRONMENT": "development"})


def test_four_instances_migrate_at_once(unmigrated: Production) -> None:
    project, env = unmigrated.project, unmigrated.env
    with ThreadPoolExecutor(4) as pool:
        upgrades = [
            pool.submit(project.tool, "alembic", "upgrade", "head", env=env) for _ in range(4)
        ]
        said = [each.result().output for each in upgrades]
    ran = Counter(
        line for each in said for line in re.findall("Running upgrade .* -> [0-9]+", each)
    )
    assert len(ran) == 4
    assert set(ran.values()) == {1}, "each by one of them"
    [[version]] = unmigrated.servers.sql("SELECT version_num FROM alembic_version")
    assert version == "0004_internet_indexes"
    assert unmigrated.servers.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [
        [0]
    ]


def test_a_migration_lets_others_read(unmigrated: Production) -> None:
    """Behind a transaction that takes long it waits for a moment, steps back, and tries again."""
    project, env = unmigrated.project, unmigrated.env
    project.tool("alembic", "upgrade", "0001", env=env)
    unmigrated.servers.sql("BEGIN")
    unmigrated.servers.sql("SELECT count(*) FROM customers")
    reader = subprocess.Popen(
        [str(project.python), "-c", READER, "9"],
        cwd=project.path,
        env=overlaid(env),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout
    assert reader.stdout.readline() == "reading\n"
    with begun(project, env, "alembic", "upgrade", "head") as upgrade:
        slowest = float(reader.communicate()[0])
        assert upgrade.poll() is None, "it still tries"
        assert 1 < slowest < 3, "it waited for its lock, and no longer"
        unmigrated.servers.sql("COMMIT")
        output = upgrade.communicate(timeout=60)[0]
    assert upgrade.returncode == 0, output
    assert "trying again" in output
    [[version]] = unmigrated.servers.sql("SELECT version_num FROM alembic_version")
    assert version == "0004_internet_indexes"


def test_a_migration_that_fails_is_said_at_once(unmigrated: Production) -> None:
    project, env = unmigrated.project, unmigrated.env
    project.tool("alembic", "upgrade", "0001", env=env)
    unmigrated.servers.sql(
        "INSERT INTO customers (full_name, email)"
        " VALUES ('Grace', 'grace@example.com'), ('Grace', 'Grace@Example.com')"
    )
    failed = project.tool("alembic", "upgrade", "head", env=env, status=1)
    assert "uq_customers_email" in failed.output
    [[version]] = unmigrated.servers.sql("SELECT version_num FROM alembic_version")
    assert version == "0001"
