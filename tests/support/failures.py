"""What the report of a failed test says beside the failure: what was rendered, and how to go on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_AT_FIRST = dict(os.environ)

# Set by make, uv and pytest: no shell has them, into which a command is pasted.
_RUNNERS = ("MAKE", "MFLAGS", "UV_RUN_", "PYTEST_XDIST_", "PYTEST_CURRENT_TEST")


@dataclass
class Trace:
    """What the present test did."""

    projects: list[Path] = field(default_factory=list)
    command: str = ""
    """The last one, as a line for a shell."""

    def sections(self) -> list[tuple[str, str]]:
        """Paragraphs of a report, with their titles."""
        there = [str(path) for path in dict.fromkeys(self.projects) if path.exists()]
        return [
            (title, text)
            for title, text in (
                ("Rendered projects", "\n".join(there)),
                ("The last command, to repeat by hand", self.command),
            )
            if text
        ]


trace = Trace()


def begin() -> None:
    """Forget the last test."""
    trace.projects.clear()
    trace.command = ""


def line(arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """A command as it is pasted into a shell, with what the tests changed in the environment."""
    names = [
        name
        for name in sorted(env.keys() | _AT_FIRST.keys())
        if env.get(name) != _AT_FIRST.get(name) and not name.startswith(_RUNNERS)
    ]
    removed = [word for name in names if name not in env for word in ("-u", name)]
    added = [f"{name}={env[name]}" for name in names if name in env]
    return f"cd {shlex.quote(str(cwd))} && {shlex.join(['env', *removed, *added, *arguments])}"
