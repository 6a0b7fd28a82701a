"""Copier as a user calls it: through the command line, and never with `--trust`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.command import Finished, run


def copier(*arguments: str | Path, cwd: Path, status: int = 0) -> Finished:
    """Run Copier's command line, which must neither ask for trust nor warn."""
    done = run(sys.executable, "-m", "copier", *arguments, cwd=cwd, status=status)
    assert "unsafe" not in done.output.lower()
    assert "Warning" not in done.output
    return done
