"""Write the hashes by which the harness knows its own files: python -m tests.support.sums"""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.support.template import ROOT

HARNESS = Path("template") / "tests" / "harness"
SUMS = HARNESS / "SHA256SUMS"


def sums(root: Path) -> str:
    """The hashes of the harness's files in a checkout of the template, by their own code."""
    integrity = runpy.run_path(str(root / HARNESS / "checks" / "integrity.py"))
    return "".join(f"{sum_}  {name}\n" for name, sum_ in integrity["sums"](root / HARNESS).items())


def write_sums(root: Path) -> None:
    """Note them where the harness looks."""
    (root / SUMS).write_text(sums(root), encoding="ascii")


if __name__ == "__main__":
    write_sums(ROOT)
