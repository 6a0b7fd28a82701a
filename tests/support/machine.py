"""What runs and what lies about on this machine. Linux only: it reads /proc."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MARK = "META_TEST_MARK"


def new_mark() -> str:
    """A value of the variable MARK: whoever inherits it was started by this test."""
    return secrets.token_hex(8)


def started_with(mark: str) -> dict[int, str]:
    """Processes that inherited the mark, however detached: their ids and command lines.

    Their children count as well: Postgres writes its state over the environment of its own.
    """
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, str] = {}
    for process in sorted(_processes()):
        with suppress(OSError):
            folder = Path(f"/proc/{process}")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in found or wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[process] = command.decode(errors="replace").strip()
    return {process: command for process, command in found.items() if command}  # no zombies


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def kill(processes: Iterable[int]) -> None:
    """`kill -9`, as the machine does when it is out of memory."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def lying_in(*folders: Path) -> set[str]:
    """All files, folders and sockets below some folders."""
    return {str(path) for folder in folders for path in folder.rglob("*")}
