"""Check that a release is ready, and tag it; say what is in it: make release, make notes"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from datetime import date

from tests.support.releases import changelog
from tests.support.template import ROOT


def git(*words: str) -> str:
    """What git prints about this checkout."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def faults(version: str) -> list[str]:
    """What keeps a version from being released, a line each."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return [f"VERSION={version or '…'}: give one like 1.2.3"]
    found = []
    if git("status", "--porcelain"):
        found.append("the tree is not clean: commit, or stash")
    if version in git("tag").split():
        found.append(f"{version} is tagged already")
    dates = changelog(ROOT)
    today = date.today().isoformat()
    if dates.get(version) != today:
        found.append(f"CHANGELOG.md has no heading `## [{version}] - {today}`")
    elif next(iter(dates)) != version:
        found.append(f"{version} is not the newest heading of CHANGELOG.md")
    else:
        if "### When you update" not in notes(version):
            found.append(f'CHANGELOG.md has no part "When you update" for {version}')
    return found


def notes(version: str) -> str:
    """What CHANGELOG.md says of a version, below its heading."""
    text = (ROOT / "CHANGELOG.md").read_text()
    _, _, entry = text.partition(f"\n## [{version}] - ")
    return entry.partition("\n")[2].partition("\n## [")[0].strip()


def show(version: str) -> int:
    """Print the notes of a release. Returns the exit status."""
    if changelog(ROOT).get(version, "Unreleased") == "Unreleased":
        print(f"CHANGELOG.md has no release {version or '…'}", file=sys.stderr)
        return 1
    print(notes(version))
    return 0


def release(version: str) -> int:
    """Check, run the tests of updates, tag. Returns the exit status."""
    if found := faults(version):
        print(*found, sep="\n", file=sys.stderr)
        return 1
    print(f"{version}: testing updates")
    tests = [
        "tests/update/test_update.py",
        "tests/adoption/test_new_suites.py",
        "tests/rendering/test_command_line.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", "slow or not slow"]
    if subprocess.run([*command, *tests], cwd=ROOT, check=False).returncode:
        print(f"{version} was not tagged: the tests failed", file=sys.stderr)
        return 1
    git("tag", "--annotate", "--message", f"Release {version}", version)
    print(f"tagged {version}. What next: git push origin main {version}")
    return 0


def main() -> int:
    """Release, or show what is in a release. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", action="store_true", help="print them, and do nothing")
    parser.add_argument("version")
    options = parser.parse_args()
    return show(options.version) if options.notes else release(options.version)


if __name__ == "__main__":
    sys.exit(main())
