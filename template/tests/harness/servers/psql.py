"""psql, opened in a database."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import HarnessError


def open_psql(program: str | Path | None, conninfo: str, arguments: Sequence[str]) -> int:
    """Run psql until it is left. Returns its exit status.

    Args:
        program: None where there is none.
        conninfo: of the database. A password goes by the environment: the arguments of a process,
            everybody on the machine can read.
        arguments: further ones.

    Raises:
        HarnessError: it is not installed.
    """
    parts = conninfo_to_dict(conninfo)
    password = str(parts.pop("password", None) or "")
    environment = {**os.environ, "PGPASSWORD": password} if password else None
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is psql's
    try:
        if program is not None:
            command = [program, "--dbname", make_conninfo("", **parts), *arguments]
            return subprocess.run(command, env=environment, check=False).returncode
    except FileNotFoundError:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
    raise HarnessError("psql is not installed.")
