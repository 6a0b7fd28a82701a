"""A Postgres of the machine's own, such as Debian's packages bring, on a loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAST = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]


def installed(*, pgvector: bool) -> Path | None:
    """The folder of an installed server's programs: META_POSTGRES_BIN, or Debian's newest."""
    named = os.environ.get("META_POSTGRES_BIN")
    folders = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    fitting = [f for f in folders if (f / "initdb").exists() and _has_pgvector(f) >= pgvector]
    return fitting[-1] if fitting else None


@contextmanager
def running(binaries: Path) -> Iterator[str]:
    """Run a new, empty server and give the URL of its maintenance database."""
    home = Path(tempfile.mkdtemp(prefix="meta-postgres-"))
    as_server = _unprivileged(home)
    port = _free_port()
    try:
        subprocess.run(
            [binaries / "initdb", "-D", home / "data", "-U", "tester", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
            timeout=120,
            **as_server,
        )
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    *(binaries / "postgres", "-D", home / "data", "-p", str(port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                    *FAST,
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                **as_server,
            )
        try:
            _wait_for(port, server, home / "log")
            yield f"postgresql+asyncpg://tester@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait(timeout=30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _has_pgvector(binaries: Path) -> bool:
    config = [str(binaries / "pg_config"), "--sharedir"]
    share = subprocess.run(config, capture_output=True, text=True, check=False).stdout.strip()
    return (Path(share) / "extension" / "vector.control").exists()


def _unprivileged(home: Path) -> dict[str, Any]:
    """Arguments for `subprocess`: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(home, "nobody")
    return {"user": "nobody", "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"Postgres did not start:\n{log.read_text()}")
