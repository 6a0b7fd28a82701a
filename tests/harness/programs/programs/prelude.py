"""What a program needs. Printed above it, to be pasted into the tests of a service."""

# ruff: noqa: F401
import asyncio
import json
import os
import subprocess
import sys
import textwrap

import asyncpg
import psycopg
import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.database import AsyncSessionLocal, engine

pytestmark = [pytest.mark.integration, pytest.mark.allow_leaks("what a program leaves open")]

URL = os.environ["DATABASE_URL"]
DSN = URL.replace("+asyncpg", "")
NAME = f"left by {os.getpid()}"  # of a prepared transaction: the whole server knows it
ROWS = [(7, "many"), (8, None)]
kept = []  # what nobody closes
heard = []  # what listeners are told


class UndoError(Exception):
    """Rolls a block back."""


class step:  # noqa: N801
    """Goes on after an error. `async with`: when the sessions that it ended are gone."""

    def __init__(self, number, *sessions):
        self.number, self.sessions = number, sessions

    def __enter__(self):
        print("step", self.number)

    def __exit__(self, kind, error, trace):
        if error is not None:
            print("   ", kind.__name__, error)
        return isinstance(error, Exception)

    async def __aenter__(self):
        self.__enter__()

    async def __aexit__(self, *error):
        await asyncio.sleep(0.05)
        return self.__exit__(*error)


def see(result):
    """Look at what a statement gave."""
    print("   ", result.all() if getattr(result, "returns_rows", False) else result)


def process(code, stay=False):
    """Run code in another process, which ends, or keeps what it opened."""
    code = f"DSN = {DSN!r}\n{textwrap.dedent(code)}\nprint()\n" + ("input()" if stay else "")
    child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1, text=True)
    kept.append(child)
    if not child.stdout.readline():
        raise RuntimeError(child.communicate()[1])
