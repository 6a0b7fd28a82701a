"""Dropped into a rendered service: tests that do something to the table that BENCH_TABLE names."""

import json
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import text

TABLE = os.environ["BENCH_TABLE"]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"]))),
]


begun = []


@pytest.fixture(autouse=True)
def timed():
    begun.append(time.perf_counter())
    Path(os.environ["BENCH_TIMES"]).write_text(json.dumps(begun))


async def does(db_session, statement):
    found = await db_session.execute(text(statement))
    await db_session.commit()
    assert found.rowcount == 1


async def test_reads(db_session, number):
    await does(db_session, f"SELECT text FROM {TABLE} WHERE id = 1")


async def test_adds(db_session, number):
    await does(db_session, f"INSERT INTO {TABLE} VALUES (0, 'added')")


async def test_changes(db_session, number):
    await does(db_session, f"UPDATE {TABLE} SET text = 'changed' WHERE id = 1")
