"""What a crash left running, and ports that others may have taken."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import HarnessError
from ..servers.postgres import children, command_line

HOST = "127.0.0.1"
TRIES = 20

_SECONDS = 10

Started = TypeVar("Started")


def end(note: Path, mark: str) -> None:
    """End the process that a file names, if it still is the one whose command line holds `mark`.

    Raises:
        HarnessError: it can't be ended.
    """
    try:
        pid = int(note.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _SECONDS
        while mark in command_line(pid):
            if time.monotonic() > deadline:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, how)
            time.sleep(0.05)
        else:
            note.unlink(missing_ok=True)
            return
    raise HarnessError(f"Process {pid}, which an earlier run left behind, can't be ended.")


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let a process that we started end, and after so many seconds kill it and those that it started."""
    if process.poll() is not None:
        return
    started = children(process.pid)
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in (process.pid, *started):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def first_port(folder: Path, least: int) -> int:
    """The port of a server that keeps its data in `folder`: always the same, seldom another's.

    One of the 4,000 from `least` on, none of which systems give to clients.
    """
    return least + int(hashlib.sha256(os.fsencode(folder)).hexdigest(), 16) % 4000


def on_a_free_port(
    first: int, start: Callable[[int], Started], *, tries: int = TRIES, host: str = HOST
) -> Started:
    """Start a server on the first port that nobody else has, of so many from `first` on.

    Raises:
        HarnessError: all are taken, or it does not start, which is not the port's fault.
    """
    for port in range(first, first + tries):
        if _is_free(port, host):
            try:
                return start(port)
            except HarnessError:
                if _is_free(port, host):
                    raise
    raise HarnessError(
        f"All ports from {first} to {port} are taken: end what uses one of them."
        if tries > 1
        else f"Port {first} is taken: name another one, or none and make run finds one."
    )


def _is_free(port: int, host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
