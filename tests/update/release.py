"""Check that a release is ready, and tag it: make release VERSION=1.2.3"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
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
        text = (ROOT / "CHANGELOG.md").read_text()
        entry = text.partition(f"## [{version}]")[2].partition("\n## [")[0]
        if "### When you update" not in entry:
            found.append(f'CHANGELOG.md has no part "When you update" for {version}')
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if stated != version:
        found.append(f"pyproject.toml says version {stated}")
    return found


def main() -> int:
    """Check, run the tests of updates, tag. Returns the exit status."""
    version = sys.argv[1] if len(sys.argv) > 1 else ""
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
    print(f"tagged {version}. What next: git push origin {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
