"""Processes of this machine: how one is known again, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import HarnessError
from ..waiting import polls

_SECONDS = 10

# What changes what a server does, or says, and is meant for others: libpq's variables and the shell's
# language, which may not even be installed here.
_NOT_THEIRS = ("PG", "LC_", "LANG")


def variables() -> dict[str, str]:
    """The environment of a server and its programs."""
    found = {n: value for n, value in os.environ.items() if not n.startswith(_NOT_THEIRS)}
    return {**found, "LC_ALL": "C"}


def hear_of_children() -> None:
    """Let this process learn how the processes that it starts end, however it was started itself.

    Where SIGCHLD is ignored, which a program passes on to those that it starts, the kernel tells nobody,
    and Python takes each for a success.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        with suppress(ValueError):  # only the main thread may; others come later
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def command_line(pid: int) -> str:
    """The command line of a process; empty when there is none."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        if sys.platform == "linux":
            return ""
    done = subprocess.run(
        ["/bin/ps", "-o", "command=", "-p", str(pid)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.stdout


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        command = ["/usr/bin/pgrep", "-P", str(pid)]
        listed = subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout
    return [int(child) for child in listed.split()]


def end(pid: int, runs: Callable[[], bool], ways: Mapping[signal.Signals, float]) -> bool:
    """End a process that runs, by one signal after the other. Returns whether it has ended.

    Args:
        pid: its number.
        runs: whether it still does: soon after, its number may be anybody's.
        ways: signals, and the seconds that each has. What it started is killed with it.
    """
    for how, seconds in ways.items():
        for process in (pid, *(children(pid) if how == signal.SIGKILL else ())):
            with suppress(ProcessLookupError):
                os.kill(process, how)
        for _ in polls(seconds, 0.005):
            if not runs():
                return True
    return False


def end_noted(note: Path, mark: str) -> None:
    """End what a crash left running: the process that a file names, if its command line holds `mark`.

    Raises:
        HarnessError: it can't be ended.
    """
    try:
        pid = int(note.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    ways = dict.fromkeys((signal.SIGTERM, signal.SIGKILL), _SECONDS)
    if mark in command_line(pid) and not end(pid, lambda: mark in command_line(pid), ways):
        raise HarnessError(f"Process {pid}, which an earlier run left behind, can't be ended.")
    note.unlink(missing_ok=True)


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let a process that we started end, and after so many seconds kill it and what it started."""
    if process.poll() is None:
        ways = {signal.SIGTERM: seconds, signal.SIGKILL: _SECONDS}
        end(process.pid, lambda: process.poll() is None, ways)
        process.wait()
