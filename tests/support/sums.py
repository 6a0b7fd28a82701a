"""Write the hashes by which the harness knows its own files: python -m tests.support.sums"""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.support.template import ROOT

HARNESS = Path("template") / "tests" / "harness"


def write_sums(root: Path) -> None:
    """Hash the harness's files in a checkout of the template, as their own code does."""
    integrity = runpy.run_path(str(root / HARNESS / "checks" / "integrity.py"))
    lines = [f"{sum_}  {name}\n" for name, sum_ in integrity["sums"](root / HARNESS).items()]
    (root / HARNESS / integrity["SUMS"]).write_text("".join(lines), encoding="ascii")


if __name__ == "__main__":
    write_sums(ROOT)
