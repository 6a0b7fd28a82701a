"""Pools with options in code: in tests they keep nothing, and their limits stay."""

from __future__ import annotations

from tests.support.small import Small

CONCERNS = ["*/harness/isolation/pools.py", "*/harness/isolation/connections.py"]

TESTS = """\
import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError
from sqlalchemy.ext.asyncio import create_async_engine

URL = os.environ["DATABASE_URL"]
one = create_async_engine(URL, pool_size=1, max_overflow=0, pool_timeout=20)
short = create_async_engine(URL, pool_size=1, max_overflow=1, pool_timeout=0.2)
threaded = create_engine(
    URL.replace("asyncpg", "psycopg"), pool_size=1, max_overflow=1, pool_timeout=20
)
INSERT = text("INSERT INTO customers (full_name, email) VALUES ('Eve', :email)")
COUNT = text("SELECT count(*) FROM customers")


async def insert(number):
    async with one.begin() as connection:
        await connection.execute(INSERT, {"email": f"eve{number}@example.org"})


@pytest.mark.parametrize("time", ["first", "second"])
async def test_who_waits_gets_his_turn(time):
    await asyncio.gather(*(insert(number) for number in range(9)))
    async with one.connect() as connection:
        assert await connection.scalar(COUNT) == 14
    assert one.pool.checkedout() == 0


@pytest.mark.parametrize("time", ["first", "second"])
def test_on_a_loop_of_its_own(time):
    asyncio.run(insert(1))


@pytest.mark.parametrize("time", ["first", "second"])
def test_in_threads(time):
    def insert(number):
        with threaded.begin() as connection:
            connection.execute(INSERT, {"email": f"eve{number}@example.org"})

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(insert, range(12)))
    with threaded.connect() as connection:
        assert connection.scalar(COUNT) == 17


# As a server for all tests does, with the pool that it has in production.
SERVER = "\\n".join([
    "import sys",
    "from sqlalchemy import create_engine, text",
    "engine = create_engine(sys.argv[1])",
    "for line in sys.stdin:",
    "    with engine.begin() as connection:",
    "        print(connection.execute(text(line)).rowcount, flush=True)",
])


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-c", SERVER, URL.replace("asyncpg", "psycopg")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("time", ["first", "second"])
def test_in_a_process(server, time):
    update = "UPDATE customers SET phone = '1' WHERE phone IS DISTINCT FROM '1'"
    print(update, file=server.stdin, flush=True)
    assert server.stdout.readline() == "5\\n"


async def test_limit():
    async with short.connect(), short.connect():
        with pytest.raises(TimeoutError):
            await short.connect()
    async with short.connect(), short.connect():
        pass
"""


def test_pools_keep_nothing_and_their_limits(small: Small) -> None:
    outcome = small.tried(TESTS)
    assert outcome.counts == {"passed": 9}
    assert "no leaked sessions" in outcome.output
