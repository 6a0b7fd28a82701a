"""Run a command, bounded in time, with its output shown when the test fails."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import failures


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
    process = begin(*command, cwd=cwd, env=env)
    said = shlex.join(str(part) for part in command)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        print(output)
        raise AssertionError(f"{said}: not done after {timeout:.0f} s") from None
    print(output, flush=True)
    if status is not None:
        assert process.returncode == status, (
            f"{said}: exit status {process.returncode}, not {status}\n" + output[-6000:]
        )
    return Finished(process.returncode, output)


def begin(
    *command: str | Path, cwd: Path, env: Mapping[str, str | None] | None = None
) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, and don't wait for it.

    Its input is empty, and both of its outputs are one. The report of a failure tells how to repeat
    it, if it is the last.
    """
    arguments = [str(part) for part in command]
    environment = overlaid(env or {})
    print(f"$ {shlex.join(arguments)}", flush=True)
    failures.trace.command = failures.line(arguments, cwd, environment)
    return subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def overlaid(env: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with `env` laid over it; None removes a name."""
    merged: dict[str, str | None] = {**os.environ, **env}
    return {name: value for name, value in merged.items() if value is not None}
