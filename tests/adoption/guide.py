"""The worked examples of the guide for suites that exist: diffs of the services under `services/`.

`python -m tests.adoption.guide` writes them anew.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from tests.support.template import ROOT

ADOPTED = ROOT / "tests" / "adoption" / "services"
GUIDE = ROOT / "template" / "docs" / "adopting-the-harness.md"

_EXAMPLE = re.compile(r"(<!-- (\w+) -->\n)```diff\n.*?```\n", re.DOTALL)


def wiring(service: str) -> str:
    """What adopting the harness changes in a service, as one diff."""
    folder = ADOPTED / service
    parts: list[str] = []
    for path in sorted((folder / "wired").rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        name = path.relative_to(folder / "wired").as_posix()
        before = folder / name
        old = before.read_text().splitlines(keepends=True) if before.exists() else []
        new = path.read_text().splitlines(keepends=True)
        parts += difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", n=1)
    return "".join(parts)


def lines(diff: str) -> tuple[int, int]:
    """How many lines of code a diff adds, and how many it takes away; empty ones don't count."""
    changed = re.findall(r"^([+-])(?!\+\+ |-- )[ \t]*\S", diff, re.MULTILINE)
    return changed.count("+"), changed.count("-")


def written(text: str) -> str:
    """The guide with its examples as they are now."""
    return _EXAMPLE.sub(lambda found: f"{found[1]}```diff\n{wiring(found[2])}```\n", text)


def examples(text: str) -> list[str]:
    """The services that the guide shows."""
    return [service for _, service in _EXAMPLE.findall(text)]


if __name__ == "__main__":
    GUIDE.write_text(written(Path(GUIDE).read_text()))
