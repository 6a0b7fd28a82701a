"""The template as it stands in the working tree, in a repository that Copier can render from."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.command import run

ROOT = Path(__file__).resolve().parents[2]

# Above every release there will be: a project rendered from the working tree is never "newer".
FUTURE = "9999.0.0"


def clone_working_tree(clone: Path) -> None:
    """Clone the template with its history, lay the working tree over it, commit and tag.

    Rendering from the checkout itself would take what is committed, or warn about a dirty tree
    and write a version into the answers that no later update knows.
    """
    run("git", "clone", "--quiet", "--no-tags", ROOT, clone, cwd=ROOT)
    run("git", "rm", "-r", "--quiet", "--ignore-unmatch", ".", cwd=clone)
    for name in working_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    run("git", "add", "--all", "--force", cwd=clone)
    run("git", "commit", "--quiet", "--allow-empty", "--message", "Working tree", cwd=clone)
    run("git", "tag", "--annotate", "--message", "Working tree", FUTURE, cwd=clone)


def working_files() -> list[str]:
    """The files of the template's checkout, committed or not, without what git ignores."""
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).output
    return [
        name
        for name in sorted(set(listed.split("\0")))
        if name and ((ROOT / name).is_file() or (ROOT / name).is_symlink())
    ]
