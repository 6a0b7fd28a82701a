"""FAULTS 3, 7, 8, 9: what happens to the embedded server, its files and its processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import kill, linux_only, started_with
from tests.support.small import SQL, Small, wait_until
from tests.support.tiers import first, quick, slow

CONCERNS = [
    "*/harness/servers/postgres.py",
    "*/harness/servers/locks.py",
    "*/harness/servers/binaries.py",
]

pytestmark = linux_only

GONE = "The tests' database server (embedded, in "
"""What a run says of a server that fails."""

# --- files, between runs ------------------------------------------------------------------------


Provoke = Callable[[Path], object]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def scramble(path: Path) -> None:
    path.write_bytes(b"\x00scrambled\xff" * 100)


def make_unreadable(path: Path) -> None:
    path.chmod(0)


def make_read_only(path: Path) -> None:
    path.chmod(0o500)


def replace_by_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def as_a_killed_initdb_leaves_it(data: Path) -> None:
    """With PG_VERSION, and little else."""
    for path in data.iterdir():
        if path.is_dir() and path.name not in ("base", "global"):
            shutil.rmtree(path)
    (data / "postgresql.conf").unlink()
    (data / "harness.json").unlink()


def of(pattern: str, provoke: Provoke, step: int = 1) -> Provoke:
    """Do something to each file or folder of the cluster that matches, or to every second one."""

    def provoke_each(data: Path) -> None:
        found = sorted(data.glob(pattern))[::step]
        assert found
        for path in found:
            provoke(path)

    return provoke_each


def of_golden(provoke: Provoke, step: int = 1) -> Provoke:
    """Do something to the files of the newest database, which is the golden one."""

    def provoke_each(data: Path) -> None:
        newest = max(int(folder.name) for folder in (data / "base").iterdir())
        of(f"base/{newest}/*", provoke, step)(data)

    return provoke_each


def manifest(**changes: str) -> Provoke:
    """Change what the harness noted of the cluster."""

    def change(data: Path) -> None:
        path = data / "harness.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


# What is done to the cluster, and how the next run comes to have one.
DAMAGES: dict[str, tuple[Provoke, str]] = {
    "a killed initdb": (as_a_killed_initdb_leaves_it, "created"),
    "filenode map scrambled": (of("global/pg_filenode.map", scramble), "created"),
    "golden database emptied": (of_golden(empty), "started"),
}
MORE_DAMAGES: dict[str, tuple[Provoke, str]] = {
    "machine was restarted": (manifest(boot="another"), "created"),
    "wheel was updated": (manifest(version="17.0"), "created"),
    "another user's": (manifest(uid="4711"), "created"),
    "manifest gone": (of("harness.json", Path.unlink), "created"),
    "manifest truncated": (of("harness.json", truncate), "created"),
    "manifest scrambled": (of("harness.json", scramble), "created"),
    "data deleted": (shutil.rmtree, "created"),
    "a file in their place": (replace_by_a_file, "created"),
    "read-only": (make_read_only, "created"),
    "unreadable": (make_unreadable, "created"),
    "a folder unreadable": (of("base", make_unreadable), "created"),
    "PG_VERSION gone": (of("PG_VERSION", Path.unlink), "created"),
    "PG_VERSION emptied": (of("PG_VERSION", empty), "created"),
    "pg_control gone": (of("global/pg_control", Path.unlink), "created"),
    "pg_control truncated": (of("global/pg_control", truncate), "created"),
    "pg_control scrambled": (of("global/pg_control", scramble), "created"),
    "WAL gone": (of("pg_wal/0*", Path.unlink), "created"),
    "WAL truncated": (of("pg_wal/0*", truncate), "created"),
    "commit log gone": (of("pg_xact", shutil.rmtree), "created"),
    "shared catalogs emptied": (of("global/1*", empty), "created"),
    "maintenance database gone": (of("base/5", shutil.rmtree), "created"),
    "golden database half gone": (of_golden(Path.unlink, step=2), "started"),
    "golden database truncated": (of_golden(truncate), "started"),
}


@pytest.mark.slow
def test_damaged_template(small: Small, complete: Any) -> None:
    """It is needed only to build a golden database; that finds out, and says what to do."""
    of("base/4/*", empty)(small.home / "data")
    small.healed(complete, says="reused")
    small.edit_seeder()
    output = small.red()
    assert "is not a valid data directory" in output
    assert "python -m tests.harness clean" in output
    small.harness("clean")
    small.healed(complete)


@pytest.mark.parametrize(
    "damage",
    quick(*DAMAGES, of=DAMAGES | MORE_DAMAGES, others=slow),
)
def test_damaged_cluster(damage: str, small: Small, complete: Any) -> None:
    provoke, how = (DAMAGES | MORE_DAMAGES)[damage]
    provoke(small.home / "data")
    small.healed(complete, says=f"embedded, {how} in")


@contextmanager
def process_of_nobody(*words: str) -> Iterator[int]:
    """A live process of the user who runs Postgres, as which a stale number may come back."""
    as_server: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
    process = subprocess.Popen(
        ["/bin/sh", "-c", "read line", *words], stdin=subprocess.PIPE, cwd="/", **as_server
    )
    try:
        yield process.pid
        assert process.poll() is None, "a stranger's process was ended"
    finally:
        process.communicate()


def test_stale_files(small: Small, complete: Any) -> None:
    """The number in the pid file is another process's by now, one that even names our files."""
    home = small.home
    with process_of_nobody("less", str(home / "data/postgresql.conf")) as pid:
        lines = [
            str(pid),
            str(home / "data"),
            "1700000000",
            "5432",
            str(home / "socket"),
            "",
            "",
            "ready",
        ]
        (home / "data/postmaster.pid").write_text("\n".join(lines) + "\n")
        shutil.rmtree(home / "socket")
        (home / "socket").mkdir()
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(home / "socket/.s.PGSQL.5432"))
        (home / "socket/.s.PGSQL.5432.lock").write_text("\n".join(lines))
        for name in ("mutex", "users", "failed-0123abcd"):
            (home / name).write_text(str(pid))
        small.healed(complete, says="embedded, started in")


SETS = """\
from sqlalchemy import text


async def test_sets(db_session):
    connection = await db_session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    setting = "default_transaction_isolation = 'serializable'"
    await connection.execute(text(f"ALTER SYSTEM SET {setting}"))
    await connection.execute(text("SELECT pg_reload_conf()"))


async def test_reads(db_session):
    assert await db_session.scalar(text("SHOW default_transaction_isolation")) == "read committed"
"""


def test_settings_of_the_run_before(small: Small) -> None:
    assert small.tried(SETS, "-k", "sets").counts == {"passed": 1, "deselected": 1}
    assert small.tried(SETS, "-k", "reads").counts == {"passed": 1, "deselected": 1}


WITHOUT_LOG = (
    SQL
    + """\
import pytest

from tests.harness.environment import current


@pytest.mark.parametrize("number", range(3))
def test_stores(number):
    (current.home / "log").unlink(missing_ok=True)
    assert sql("SELECT count(*) FROM customers") == [(5,)]
    sql("DELETE FROM customers WHERE id = 1")
"""
)


def test_log_that_can_not_be_seen(small: Small) -> None:
    """It tells that a test connected. A fixture may put a file system of its own in place, too."""
    outcome = small.tried(WITHOUT_LOG)
    assert outcome.counts == {"passed": 3}, outcome.output[-6000:]


@pytest.mark.slow
def test_lock_files_missing(small: Small, complete: Any) -> None:
    for name in ("mutex", "users", "project", "log"):
        (small.home / name).unlink()
    small.healed(complete, says="embedded, started in")


@pytest.mark.thorough
def test_folder_that_is_a_file(small: Small, complete: Any) -> None:
    shutil.rmtree(small.home)
    small.home.write_text("somebody's")
    try:
        output = small.red()
        assert small.home.read_text() == "somebody's"
    finally:
        small.home.unlink()
    assert f"{GONE}{small.home}) failed:\n[Errno 17] File exists" in output
    assert "Traceback" not in output
    small.healed(complete, says="embedded, created in")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "alone",
    first(1, [False, True]),
    ids=["with the run", "alone"],
)
def test_killed_initdb(alone: bool, small: Small, complete: Any) -> None:
    """Killed in its middle: it has written PG_VERSION by then."""
    shutil.rmtree(small.home)
    run = small.begin()
    initdb = small.wait_for("initdb", run)
    half = small.home / "data.new"
    wait_until((half / "PG_VERSION").exists, "PG_VERSION")
    kill([initdb] if alone else started_with(small.mark))
    outcome = small.end(run)
    assert outcome.status
    assert half.exists() is not alone
    if alone:
        assert f"initdb in {half} ended with status -9, and said: nothing" in outcome.output
    small.healed(complete, says="embedded, created in")


@pytest.mark.slow
def test_clock_that_jumps(small: Small, complete: Any, tmp_path: Path) -> None:
    """What was not used for a day is removed, but never what is in use, whatever the clock says."""
    shutil.copytree(small.path, tmp_path / "other")
    other = changed(small, path=tmp_path / "other")
    other.green()
    used, others = small.home / "users", other.home / "users"
    with small.console() as console:
        os.utime(used, (0, 0))
        other.green()
        assert console.sql("SELECT 1") == [[1]]
    os.utime(others, (2**33, 2**33))
    small.healed(complete)
    assert other.home.exists()
    os.utime(others, (0, 0))
    small.healed(complete)
    assert not other.home.exists()
    os.utime(used, (2**33, 2**33))
    small.healed(complete)


# --- the server, during a run -------------------------------------------------------------------


def server(small: Small, run: subprocess.Popen[str]) -> int:
    return small.wait_for("/postgres -D", run)


def children(small: Small, what: str = "") -> list[int]:
    return [
        pid
        for pid, line in started_with(small.mark).items()
        if line.startswith(f"postgres: {what}")
    ]


def kill_postmaster(small: Small, run: subprocess.Popen[str]) -> None:
    kill([server(small, run)])


def kill_all_of_it(small: Small, run: subprocess.Popen[str]) -> None:
    kill([server(small, run), *children(small)])


def kill_checkpointer(small: Small, run: subprocess.Popen[str]) -> None:
    kill(children(small, "checkpointer"))


def kill_a_backend(small: Small, run: subprocess.Popen[str]) -> None:
    kill(children(small, "postgres app_w_")[:1])


def stop_orderly(small: Small, run: subprocess.Popen[str]) -> None:
    os.kill(server(small, run), signal.SIGINT)


DEATHS = {
    "server killed": kill_postmaster,
    "all of it killed": kill_all_of_it,
    "checkpointer killed": kill_checkpointer,
    "backend killed": kill_a_backend,
    "stopped in good order": stop_orderly,
}

# The first is held in its middle; those after it would like a database, too.
THREE = [
    f"tests/test_small.py::test_{name}" for name in ("linger", "rolled_back", "own_connections")
]


@pytest.mark.parametrize(
    "death",
    first(1, DEATHS),
)
def test_server_dies_during_a_test(death: str, small: Small, complete: Any) -> None:
    with small.held(*THREE) as run:
        DEATHS[death](small, run)
        time.sleep(0.3)  # until its other processes know
    outcome = small.end(run)
    assert outcome.status == 1
    assert outcome.output.count(f"{GONE}{small.home}) failed:") == 1
    assert "The end of " in outcome.output, "its log"
    assert outcome.counts["error"] == 1, "the tests after it are not tried"
    small.healed(complete)


def remove_socket(home: Path) -> None:
    shutil.rmtree(home / "socket")


def remove_home(home: Path) -> None:
    shutil.rmtree(home)


def remove_data(home: Path) -> None:
    shutil.rmtree(home / "data")


def remove_locks(home: Path) -> None:
    for name in ("mutex", "users"):
        (home / name).unlink()


@pytest.mark.parametrize(
    ("remove", "says"),
    first(
        1,
        [
            (remove_socket, "No such file or directory"),
            (remove_home, GONE),
            (remove_data, GONE),
            (remove_locks, "4 passed"),  # whoever has its lock, keeps it
        ],
    ),
)
def test_files_vanish_during_a_test(
    remove: Callable[[Path], None], says: str, small: Small, complete: Any
) -> None:
    with small.held(*THREE) as run:
        remove(small.home)
    outcome = small.end(run)
    assert says in outcome.output
    assert "INTERNALERROR" not in outcome.output
    # A server whose files are gone finds out within a minute, and ends.
    wait_until(lambda: not started_with(small.mark), "the server's end", timeout=90)
    small.healed(complete)


@pytest.mark.slow
def test_server_suspended_during_a_test(small: Small, complete: Any) -> None:
    """It answers nothing, and closes nothing. The run ends, and the next one ends the server."""
    with small.held(*THREE) as run:
        for pid in (server(small, run), *children(small)):
            os.kill(pid, signal.SIGSTOP)
    outcome = small.end(run, timeout=400)
    assert outcome.status == 1
    assert GONE in outcome.output
    assert "the server does not answer any more: waited 120 s" in outcome.output
    small.healed(complete)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
def test_server_out_of_reach_at_the_end(workers: list[str], small: Small, complete: Any) -> None:
    """The test passed, but whether it left the database as it was can't be told."""
    with small.held("tests/test_small.py::test_linger", *workers) as run:
        remove_socket(small.home)
    outcome = small.end(run)
    assert (outcome.status, outcome.counts) == (1, {"passed": 1, "error": 1})
    assert "No connection to " in outcome.output
    small.healed(complete)
