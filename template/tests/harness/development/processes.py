"""What a crash left running."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from ..errors import HarnessError
from ..servers.postgres import children, command_line

_SECONDS = 10


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
