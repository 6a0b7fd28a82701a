"""Copier as a user calls it: through the command line, and never with `--trust`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.command import Finished, run
from tests.support.project import Project
from tests.support.releases import FUTURE


def copier(*arguments: str | Path, cwd: Path, status: int = 0) -> Finished:
    """Run Copier's command line, which must neither ask for trust nor warn."""
    done = run(sys.executable, "-m", "copier", *arguments, cwd=cwd, status=status)
    assert "unsafe" not in done.output.lower()
    assert "Warning" not in done.output
    return done


def update(project: Project, *options: str, to: str = FUTURE) -> str:
    """Update it, asking nothing. Returns what Copier said."""
    return copier("update", "--defaults", "-r", to, *options, cwd=project.path).output


def unmerged(project: Project) -> list[str]:
    """Files with conflicts, as the message after an update tells one to look for them."""
    listed = project.run("git", "diff", "--name-only", "--diff-filter=U").output
    return sorted(set(listed.splitlines()))
