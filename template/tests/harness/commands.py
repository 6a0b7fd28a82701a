"""See and clean up what the harness keeps: `python -m tests.harness status | psql | clean`.

`doctor`, which works where drivers are missing, is in a file of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from . import environment
from .errors import HarnessError
from .golden import databases
from .golden.databases import Connection
from .layout import NAME, PACKAGE, ROOT, TESTS
from .servers import guard
from .servers import postgres as server
from .servers.psql import open_psql


def main() -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser(
        "doctor",
        help="say what the project still needs for its tests to run, and what to write where",
    )
    status = commands.add_parser(
        "status", help="list databases; and embedded servers, where they are, what they take"
    )
    status.set_defaults(run=_status)
    psql = commands.add_parser(
        "psql",
        help="open psql in a database: a kept one, or a fresh clone of the golden one",
        epilog=f"What follows `--` goes to psql: python -m {NAME} psql -- -c 'SELECT 1'",
    )
    psql.add_argument(
        "database",
        nargs="?",
        help="a name from `status`; default: the last that was kept, or a clone",
    )
    psql.set_defaults(run=_psql)
    clean = commands.add_parser(
        "clean", help="drop all databases but those that tests run in, and the embedded server"
    )
    clean.set_defaults(run=_clean)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end], argparse.Namespace(psql_arguments=words[end + 1 :]))
    try:
        _prepare()
        guard.check_url(environment.current)
        return int(options.run(options) or 0)
    except (HarnessError, psycopg.Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _prepare() -> None:
    """Let the project say which servers are its tests', where the package of its tests does not.

    Raises:
        HarnessError: nobody does.
    """
    package = NAME.split(".")[:-1]
    for folder in (TESTS, *TESTS.parents):
        if hasattr(environment, "current"):
            return
        if (folder / "conftest.py").exists():
            importlib.import_module(".".join([*package, "conftest"]))
        if folder == ROOT or not package:
            break
        package.pop()
    if not hasattr(environment, "current"):
        raise HarnessError(
            f"Neither {PACKAGE} nor a conftest.py calls prepare() of {NAME}.environment."
        )


def _status(_: argparse.Namespace) -> None:
    current = environment.current
    if current.external_url:
        print("server: TEST_DATABASE_URL")
        with databases.connect(current) as connection:
            _list_databases(connection)
        return
    for base in environment.bases():
        for home in sorted(base.glob("*")):
            if (home / "data").is_dir():
                _describe(home)
    if not (current.home / "data").is_dir():
        print(f"{ROOT}: no embedded server yet; the first run of the tests makes it")
    elif server.EmbeddedServer(current.home).is_running():
        with databases.connect(current) as connection:
            _list_databases(connection)
    else:
        print("  (its databases are listed while it runs; `psql` starts it)")


def _describe(home: Path) -> None:
    cluster = server.EmbeddedServer(home)
    state = "running" if cluster.is_running() else "stopped"
    project = os.fsdecode((home / "project").read_bytes())
    mine = " (this project)" if home == environment.current.home else ""
    print(f"{project}{mine}: embedded server, {state}, {_size(home) / 1e6:.0f} MB in {home}")


def _size(home: Path) -> int:
    """Bytes of all files there. Those that go meanwhile don't count."""
    total = 0
    for folder, _, names in os.walk(home):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _list_databases(connection: Connection) -> None:
    for database in databases.ours(connection):
        notes = database.notes
        built = (
            f", built {notes.get('built', '?')} for {notes.get('project', '?')}" if notes else ""
        )
        print(f"  {database.name:50s} {databases.KINDS[database.kind]}{built}")


def _psql(options: argparse.Namespace) -> int:
    current = environment.current
    with _running_server() as program, databases.connect(current) as connection:
        databases.hold_run(connection, current.run)
        name, scratch = options.database, None
        if name is None:
            found = databases.ours(connection)
            kept = [d.name for d in found if d.kind == "k"]
            golden = [d.name for d in found if d.is_of_this_project]
            if kept:
                name = kept[-1]
            elif golden:
                name = scratch = f"app_w_{current.run}_psql{secrets.token_hex(2)}"
                databases.create(connection, scratch, golden[-1])
            else:
                raise HarnessError("There is no database yet: run the tests first.")
        try:
            return open_psql(program, current.conninfo(name), options.psql_arguments)
        finally:
            if scratch is not None:
                databases.drop_named(connection, scratch)


def _clean(_: argparse.Namespace) -> None:
    current = environment.current
    if current.external_url:
        with databases.connect(current) as connection:
            guard.check_server(connection)
            databases.hold_run(connection, current.run)
            dropped, left = databases.sweep(connection, current.run, kept=0)
            golden = [d for d in databases.ours(connection) if d.kind == "g"]
            databases.drop(connection, golden)
            print(f"dropped {len(dropped) + len(golden)} databases")
        if left:
            raise HarnessError("\n".join(left))
        return
    cluster = server.EmbeddedServer(current.home)
    if not current.home.exists():
        print("nothing to clean")
    elif cluster.remove():
        print(f"removed {current.home}")
    else:
        raise HarnessError(
            f"A run of the tests uses {current.home}: wait for its end, then clean again."
        )


@contextmanager
def _running_server() -> Iterator[Path | str]:
    """The psql to call, while the server runs."""
    current = environment.current
    if current.external_url:
        yield "psql"
        return
    cluster = server.EmbeddedServer(current.home)
    cluster.start()
    try:
        own = cluster.binaries() / "psql"
        yield own if own.exists() else "psql"
    finally:
        cluster.stop()
