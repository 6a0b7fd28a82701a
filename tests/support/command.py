"""Run a command, bounded in time, with its output shown when the test fails."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit status and both of its outputs, in the order they came."""

    status: int
    output: str


def run(
    *command: str | Path,
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    timeout: float = 180,
    status: int | None = 0,
) -> Finished:
    """Run `command` in `cwd`, with `env` laid over this process's environment.

    A name whose value is None is removed. The output is printed, so pytest shows it with a
    failure. `status` is the exit status asked for; None accepts any. A command that runs out of
    time is killed with all its children.
    """
    arguments = [str(part) for part in command]
    print(f"$ {shlex.join(arguments)}", flush=True)
    process = subprocess.Popen(
        arguments,
        cwd=cwd,
        env=overlaid(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        print(output)
        raise AssertionError(f"{shlex.join(arguments)}: not done after {timeout:.0f} s") from None
    print(output, flush=True)
    if status is not None:
        assert process.returncode == status, (
            f"{shlex.join(arguments)}: exit status {process.returncode}, not {status}\n"
            + output[-6000:]
        )
    return Finished(process.returncode, output)


def overlaid(env: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with `env` laid over it; None removes a name."""
    merged: dict[str, str | None] = {**os.environ, **env}
    return {name: value for name, value in merged.items() if value is not None}
