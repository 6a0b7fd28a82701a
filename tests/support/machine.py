"""What runs and what lies about on this machine, and what others see of it. Linux only."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

ODD = 'it\'s a "place" with spaces, $HOME, 100 % ünïcödé & 東京'
"""A name of a folder."""

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
            # A program's name is cut at 15 bytes, in the midst of a character if there is one.
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
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


def hidden(path: Path, uid: int) -> Path | None:
    """The first folder on the way to a path that another user can't enter."""
    for folder in reversed(path.parents):
        status = folder.stat()
        if not status.st_mode & (0o100 if status.st_uid == uid else 0o001):
            return folder
    return None


def seen_by(uid: int, *paths: Path) -> str:
    """A script that lets a user see paths to which the folders on the way are closed.

    It runs in a mount namespace of its own: nothing changes outside.
    """
    lines = ["set -e", "mount -t tmpfs none /mnt"]
    closed: dict[Path, list[Path]] = {}
    for path in paths:
        if folder := hidden(path, uid):
            closed.setdefault(folder, []).append(path)
    for number, (folder, inner) in enumerate(closed.items()):
        lines += [
            f"mkdir /mnt/{number}",
            f"mount --bind {shlex.quote(str(folder))} /mnt/{number}",
            f"mount -t tmpfs -o mode=755 none {shlex.quote(str(folder))}",
        ]
        for path in inner:
            quoted, relative = shlex.quote(str(path)), shlex.quote(str(path.relative_to(folder)))
            lines += [f"mkdir -p {quoted}", f"mount --bind /mnt/{number}/{relative} {quoted}"]
    return "\n".join(lines)
