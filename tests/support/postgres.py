"""A Postgres beside the embedded one, on a loopback port: what `TEST_DATABASE_URL` names."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.project import Project

FAST = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]

# Everybody on this machine is trusted, but for one role that must show a password.
HBA = """\
local all all trust
host all locked all scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""

# All that a server holds outside of its databases, but for what counts up by itself.
_CATALOGS = {
    "pg_authid": "rolname",
    "pg_auth_members": "roleid, member",
    "pg_database": "datname",
    "pg_db_role_setting": "setdatabase, setrole",
    "pg_shdescription": "objoid, classoid",
    "pg_shseclabel": "objoid, classoid",
    "pg_tablespace": "spcname",
}

# Each switch the other way round, each choice another one, each number the least there may be, or
# a greater one. But for what the harness refuses by name, and for what would fill the log.
_OTHERWISE = """
    SELECT format('%I = %L', name, CASE
        WHEN vartype = 'bool' THEN (setting <> 'on')::text
        WHEN vartype = 'enum' THEN
            (SELECT max(choice) FROM unnest(enumvals) choice WHERE choice <> setting)
        WHEN setting <> min_val THEN min_val
        ELSE least(setting::numeric + 1000, max_val::numeric)::text END)
    FROM pg_settings
    WHERE vartype <> 'string' AND cardinality(enumvals) IS DISTINCT FROM 1
      AND name !~ '^(transaction_(deferrable|isolation|read_only)$|debug_print|log_.*_stats$)'
      AND name NOT IN ('default_transaction_read_only', 'track_counts')
      AND context IN
"""


@dataclass(frozen=True)
class Server:
    """A running server."""

    binaries: Path
    data: Path
    port: int

    def url(
        self, user: str = "tester", database: str = "postgres", scheme: str = "postgresql+asyncpg"
    ) -> str:
        """The URL of a database on it."""
        name = quote(database, safe="")
        return f"{scheme}://{user}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, database: str = "postgres", user: str = "tester") -> list[str]:
        """Run SQL by psql. Returns a line for each row."""
        url = self.url(user, database, "postgresql")
        done = subprocess.run(
            [str(self.binaries / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, url],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{statement}\n{done.stderr}"
        return done.stdout.splitlines()

    def otherwise(self, *contexts: str) -> list[str]:
        """For each setting of some contexts (see pg_settings) another value: `name = value`."""
        return self.sql(f"{_OTHERWISE} ({', '.join(map(repr, contexts))})")

    def configure_otherwise(self, *more: str) -> None:
        """Set for the whole server whatever a session may change to something else, and more."""
        settings = self.otherwise("user", "superuser")
        assert len(settings) > 100
        for setting in (*settings, *more):
            self.sql(f"ALTER SYSTEM SET {setting}")
        self.sql("SELECT pg_reload_conf()")

    def catalogs(self) -> dict[str, list[str]]:
        """Its databases, roles, settings and comments, row by row."""
        return {
            name: self.sql(
                f"SELECT to_jsonb(c) - 'datfrozenxid' - 'datminmxid' FROM {name} c ORDER BY {order}"
            )
            for name, order in _CATALOGS.items()
        }


def installed(*, pgvector: bool) -> Path | None:
    """The folder of an installed server's programs: META_POSTGRES_BIN, or Debian's newest."""
    named = os.environ.get("META_POSTGRES_BIN")
    folders = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    fitting = [f for f in folders if (f / "initdb").exists() and _has_pgvector(f) >= pgvector]
    return fitting[-1] if fitting else None


@contextmanager
def packaged(project: Project) -> Iterator[Path]:
    """The folder of the programs that the embedded server is made of, readable for everybody."""
    code = (
        "import sys; from pathlib import Path; import tests\n"
        "from tests.harness.servers.binaries import binaries\n"
        "print(binaries(Path(sys.argv[1])))"
    )
    home = Path(tempfile.mkdtemp(prefix="meta-programs-"))
    home.chmod(0o755)
    try:
        yield Path(project.run(project.python, "-c", code, home).output.strip())
    finally:
        shutil.rmtree(home)


@contextmanager
def running(binaries: Path, *settings: str, encoding: str = "UTF8") -> Iterator[Server]:
    """Run a new, empty server with some settings (`name=value`). Its superuser is `tester`."""
    with _home() as home:
        data = home / "data"
        text = ("--locale=C", f"--encoding={encoding}")
        _call(binaries / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", *text)
        (data / "pg_hba.conf").write_text(HBA)
        with _serving(binaries, data, settings) as server:
            yield server


@contextmanager
def standby(primary: Server) -> Iterator[Server]:
    """Run a replica of a server."""
    with _home() as home:
        data = home / "data"
        where = ["--host=127.0.0.1", f"--port={primary.port}", "--username=tester"]
        backup = primary.binaries / "pg_basebackup"
        _call(backup, "-D", data, "--write-recovery-conf", "--no-sync", "-c", "fast", *where)
        with _serving(primary.binaries, data, []) as server:
            yield server


@contextmanager
def _home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="meta-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "nobody")
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _serving(binaries: Path, data: Path, settings: Sequence[str]) -> Iterator[Server]:
    with reserved_port() as port:
        yield from _on(port, binaries, data, settings)


def _on(port: int, binaries: Path, data: Path, settings: Sequence[str]) -> Iterator[Server]:
    log = data.parent / "log"
    options = [word for setting in settings for word in ("-c", setting)]
    with log.open("wb") as output:
        command: list[str | Path] = [binaries / "postgres", "-D", data, "-p", str(port)]
        only_here = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        process = subprocess.Popen(
            [*command, *FAST, *only_here, *options],
            stdout=output,
            stderr=output,
            cwd="/",
            **unprivileged(),
        )
    try:
        wait_until_ready(binaries, port, process, log)
        yield Server(binaries, data, port)
    finally:
        process.send_signal(signal.SIGINT)  # not waiting for sessions to end
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)


def _call(*command: str | Path) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd="/", timeout=120, check=False, **unprivileged()
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def _has_pgvector(binaries: Path) -> bool:
    config = [str(binaries / "pg_config"), "--sharedir"]
    share = subprocess.run(config, capture_output=True, text=True, check=False).stdout.strip()
    return (Path(share) / "extension" / "vector.control").exists()


def unprivileged() -> dict[str, Any]:
    """Arguments for `subprocess`: Postgres refuses to run as root."""
    return {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of the loopback address that nobody is given meanwhile; a server may listen there.

    Without it, where much else goes on, another test's server or client may be quicker.
    """
    with socket.socket() as probe:
        # Linux lets two have an address who both say this, while neither listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        if sys.platform != "linux":
            probe.close()
        yield port


def wait_until_ready(
    binaries: Path, port: int, process: subprocess.Popen[bytes], log: Path | None = None
) -> None:
    """Wait until a server on this machine accepts connections."""
    ready: list[str | Path] = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"it did not start:\n{log.read_text() if log else ''}")
