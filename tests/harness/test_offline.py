"""Tests stay on this machine, whatever the code under test, its libraries and the shell do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Render
from tests.support import wire
from tests.support.machine import linux_only
from tests.support.small import Small, replace, small_service
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = [
    "*/harness/checks/offline.py",
    "*/harness/checks/addresses.py",
    "*/harness/checks/children/*",
    "*/harness/shell.py",
]

# What a test, or the code under test, may do to leave: each refused, each as the same error.
LEAVES = """\
import asyncio
import contextlib
import os
import socket

import pytest

pytestmark = pytest.mark.integration
ADDRESS = (os.environ["ELSEWHERE"], 9)
NAME = "api.example.org"


def stream():
    socket.create_connection(ADDRESS, timeout=1)


def connect_ex():
    with socket.socket() as peer:
        peer.connect_ex(ADDRESS)


def six():
    with socket.socket(socket.AF_INET6) as peer:
        peer.connect(("2001:db8::1", 9))


def mapped():
    with socket.socket(socket.AF_INET6) as peer:
        peer.connect(("::ffff:" + ADDRESS[0], 9))


def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", ADDRESS)


def message():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendmsg([b"x"], [], 0, ADDRESS)


def connected_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.connect(ADDRESS)


def by_name():
    with socket.socket() as peer:
        peer.connect((NAME, 9))


def below():
    import _socket

    peer = _socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        peer.connect(ADDRESS)
    finally:
        peer.close()


def name():
    socket.getaddrinfo(NAME, 443)


def old_name():
    socket.gethostbyname(NAME)


def reverse():
    socket.gethostbyaddr(ADDRESS[0])


def psycopg_by_address():
    import psycopg

    psycopg.connect(f"postgresql://{ADDRESS[0]}:9/x")


def psycopg_past_the_host():
    import psycopg

    psycopg.connect(f"host=localhost hostaddr={ADDRESS[0]} port=9")


def psycopg_by_service():
    import psycopg

    psycopg.connect("service=production")


async def asyncio_stream():
    await asyncio.open_connection(*ADDRESS)


async def asyncio_name():
    await asyncio.open_connection(NAME, 443)


async def asyncio_datagram():
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=ADDRESS)


async def asyncio_thread():
    await asyncio.to_thread(stream)


async def asyncio_task():
    await asyncio.create_task(asyncio_name())


async def asyncpg():
    import asyncpg

    await asyncpg.connect(host=ADDRESS[0], port=9, user="x")


async def httpx():
    import httpx

    async with httpx.AsyncClient() as client:
        await client.get(f"https://{NAME}/")


async def httpx_by_address():
    import httpx

    async with httpx.AsyncClient() as client:
        await client.get(f"http://{ADDRESS[0]}:9/")


WAYS = [
    *(stream, connect_ex, six, mapped, datagram, message, connected_datagram, by_name, below),
    *(name, old_name, reverse, psycopg_by_address, psycopg_past_the_host, psycopg_by_service),
    *(asyncio_stream, asyncio_name, asyncio_datagram, asyncio_thread, asyncio_task),
    *(asyncpg, httpx, httpx_by_address),
]


async def go(way):
    result = way()
    if asyncio.iscoroutine(result):
        await result


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_leaves(way):
    await go(way)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_swallows(way):
    with contextlib.suppress(Exception):
        await go(way)


@pytest.fixture
def swallows():
    with contextlib.suppress(Exception):
        stream()
    yield


@pytest.fixture
def swallows_at_the_end():
    yield
    with contextlib.suppress(Exception):
        stream()


def test_swallowed_in_a_fixture(swallows):
    pass


def test_error_at_the_end(swallows_at_the_end):
    pass


@pytest.mark.parametrize("way", [asyncio_stream, asyncio_name], ids=lambda way: way.__name__)
def test_uvloop(way):
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(way())
"""
WAYS = 23
UVLOOP = 2
ERRORS = 1  # in a fixture, after its test has passed

# What stays: this machine, and threads of which no test knows.
STAYS = """\
import contextlib
import os
import socket
import threading

import pytest

ADDRESS = (os.environ["ELSEWHERE"], 9)
SEEN = []


def test_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "127.9.9.9"):
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    assert socket.getaddrinfo(socket.gethostname(), 80) or True
    assert socket.getfqdn()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", ("127.0.0.1", 9))


def test_background_thread_finds_no_network():
    def send():
        try:
            socket.create_connection(ADDRESS, timeout=1)
        except OSError as error:  # as any library catches it
            SEEN.append(error)
        with contextlib.suppress(OSError):
            socket.getaddrinfo("api.example.org", 443)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert SEEN


def test_skips():
    try:
        socket.create_connection(ADDRESS, timeout=1)
    except Exception:
        pytest.skip("no network")
"""

# Processes of Python that a test starts, and those that these start.
CHILDREN = """\
import multiprocessing
import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration
ADDRESS = (os.environ["ELSEWHERE"], 9)
LEAVES = f"import socket; socket.create_connection({ADDRESS!r}, timeout=1)"
AGAIN = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
NAME = "import socket; socket.getaddrinfo('api.example.org', 443)"
SAID = "tests don't leave this machine, and "


def said(*arguments):
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr


def test_child():
    assert f"{SAID}{ADDRESS[0]}:9" in said(LEAVES)


def test_its_child():
    assert f"{SAID}{ADDRESS[0]}:9" in said(AGAIN, LEAVES)


def test_name():
    assert f"{SAID}api.example.org" in said(NAME)


def test_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ("localhost", server.getsockname()[1])
        assert said(f"import socket; socket.create_connection({address!r})") == ""


@pytest.mark.parametrize("how", multiprocessing.get_all_start_methods())
def test_multiprocessing(how):
    context = multiprocessing.get_context(how)
    process = context.Process(target=socket.create_connection, args=(ADDRESS, 1))
    process.start()
    process.join()
    assert process.exitcode == 1


def test_own_sitecustomize(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.theirs = 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert "KeyError" in said("import sys; sys.theirs; raise KeyError")
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"] + os.pathsep + str(tmp_path))
    assert "KeyError" in said("import sys; sys.theirs; raise KeyError")


@pytest.mark.network
def test_marked():
    assert SAID not in said(LEAVES)
"""

# The program of another Python, such as the system's own.
OLDER = """\
import os
import socket
import subprocess

import pytest

pytestmark = pytest.mark.integration


def test_older():
    name = f"\\0{os.getpid()}"
    here = f"socket.socket(socket.AF_UNIX).connect({name!r})"
    elsewhere = "socket.create_connection(('198.51.100.7', 9), timeout=1)"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        command = [os.environ["OLDER"], "-c", f"import socket; {here}; {elsewhere}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "tests don't leave this machine, and 198.51.100.7:9" in done.stderr
"""

# A listener on an address of this machine that is none of loopback's.
REACHES = """\
import os
import socket
import subprocess
import sys

import pytest

PORT = int(os.environ["PORT"])


def ask(host):
    with socket.create_connection((host, PORT), timeout=5) as peer:
        return peer.recv(10)


def test_by_address():
    assert ask(os.environ["ELSEWHERE"]) == b"hello"


@pytest.mark.network
def test_marked():
    assert ask(os.environ["ELSEWHERE"]) == b"hello"
    assert os.environ.get("HTTPS_PROXY") == "http://proxy.example.org:3128"
    assert "NO_PROXY" not in os.environ
    assert os.environ["SSL_CERT_FILE"] == "/company/roots.pem"


def test_child_by_address():
    code = "import socket, sys; socket.create_connection(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, os.environ["ELSEWHERE"], str(PORT)], check=True)


def test_environment():
    assert "HTTPS_PROXY" not in os.environ
    assert os.environ["NO_PROXY"] == "*"
    assert "SSL_CERT_FILE" not in os.environ
"""

# A service whose telemetry is switched on in its code, whatever the variables say.
TELEMETRY = """\
import time

import pytest


def test_traced():
    from langsmith import Client, traceable, tracing_context

    client = Client(api_url="https://api.smith.example.org", api_key="x")

    @traceable(client=client)
    def work():
        return 1

    with tracing_context(enabled=True, client=client):
        assert work() == 1


@pytest.mark.parametrize("number", range(3))
def test_next(number):
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def service(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """The small service, and the files above."""
    path = tmp_path_factory.mktemp("offline") / "service"
    with small_service(rendered(**ALL_OFF), path) as small:
        files = {
            "leaves": LEAVES,
            "stays": STAYS,
            "children": CHILDREN,
            "reaches": REACHES,
            "telemetry": TELEMETRY,
        }
        for name, text in files.items():
            (small.path / "tests" / f"{name}.py").write_text(text)
        yield small


def test_nothing_leaves(service: Small) -> None:
    outcome = service.outcome("tests/leaves.py", ELSEWHERE="198.51.100.7")
    asked = 2 * WAYS + UVLOOP + 1
    assert outcome.counts == {"failed": asked, "passed": 1, "error": ERRORS}, outcome.output
    assert outcome.output.count("asked for") >= asked
    assert "tests/leaves.py:" in outcome.output, "the caller"
    assert "198.51.100.7:9" in outcome.output, "the address"
    assert 'harness_allowed_connections = ["198.51.100.7"]' in outcome.output, "the setting"
    assert "INTERNALERROR" not in outcome.output


@pytest.mark.parametrize("workers", first(1, [[], ["-n", "2"]]), ids=["alone", "two workers"])
def test_what_stays_is_left_alone(workers: list[str], service: Small) -> None:
    outcome = service.outcome("tests/stays.py", *workers, ELSEWHERE="198.51.100.7")
    assert outcome.counts == {"passed": 2, "skipped": 1}, outcome.output
    refused = "refused to a background thread, 1 times: "
    for address in ("198.51.100.7:9", "api.example.org"):
        assert f"{refused}{address} (tests/stays.py:" in outcome.output


@pytest.mark.parametrize("workers", first(1, [[], ["-n", "2"]]), ids=["alone", "two workers"])
def test_processes_stay_as_well(workers: list[str], service: Small) -> None:
    outcome = service.outcome("tests/children.py", *workers, ELSEWHERE="198.51.100.7")
    assert outcome.counts == {"passed": 9}, outcome.output


@pytest.mark.thorough
@linux_only  # has sockets without a file
def test_programs_of_an_older_python_stay_as_well(service: Small) -> None:
    """As far as the machine has one: those of RHEL 9 and of macOS are 3.9."""
    found = [*Path("/usr/bin").glob("python3.[89]")]
    found += (Path.home() / ".pyenv/versions").glob("3.[89].*/bin/python")
    if not found:
        pytest.skip("there is no Python 3.8 or 3.9 on this machine")
    for python in found:
        outcome = service.tried(OLDER, OLDER=str(python))
        assert outcome.counts == {"passed": 1}, outcome.output


def test_seeder_stays_as_well(service: Small) -> None:
    service.edit_seeder()
    leaves = "import socket; socket.create_connection(('api.example.org', 443), timeout=1)"
    output = service.red("tests/test_small.py", SEED=leaves)
    assert "tests don't leave this machine, and api.example.org is not among" in output


@pytest.mark.thorough
def test_hosts_are_allowed_by_a_setting_or_a_marker(service: Small) -> None:
    host = wire.own_address()

    def greet(client: socket.socket) -> None:
        client.sendall(b"hello")

    with wire.listening(greet, host) as port:
        variables: dict[str, Any] = {
            "ELSEWHERE": host,
            "PORT": str(port),
            "HTTPS_PROXY": "http://proxy.example.org:3128",
            "SSL_CERT_FILE": "/company/roots.pem",
        }
        outcome = service.outcome("tests/reaches.py", **variables)
        assert outcome.counts == {"failed": 2, "passed": 2}, outcome.output
        assert f"{host}:{port}" in outcome.output
        setting = f"harness_allowed_connections={host}"
        by_option = service.outcome("tests/reaches.py", "-o", setting, **variables)
        assert by_option.counts == outcome.counts, "pyproject.toml alone counts"
        parallel = service.outcome("tests/reaches.py", "-n", "2", **variables)
        assert parallel.counts == outcome.counts, parallel.output

        configuration = service.path / "pyproject.toml"
        table = "[tool.pytest.ini_options]\n"
        for allowed, counts in (
            (host, {"passed": 4}),
            (f"{host}:{port}", {"passed": 4}),
            (f"{host}:{port + 1}", {"failed": 2, "passed": 2}),
        ):
            before = configuration.read_text()
            named = f'{table}harness_allowed_connections = ["{allowed}"]\n'
            replace(configuration, table, named)
            outcome = service.outcome("tests/reaches.py", **variables)
            configuration.write_text(before)
            assert outcome.counts == counts, outcome.output


@pytest.mark.thorough
def test_telemetry_that_is_switched_on_in_code_neither_fails_nor_slows_a_test(
    service: Small,
) -> None:
    outcome = service.outcome("tests/telemetry.py", "--durations=0", "-vv")
    assert outcome.counts == {"passed": 4}, outcome.output
    assert "refused to a background thread" in outcome.output
    assert "api.smith.example.org (langsmith/" in outcome.output
