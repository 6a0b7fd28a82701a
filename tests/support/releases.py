"""Versions of the template: those that were released, and one that may be."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.command import run
from tests.support.small import replace
from tests.support.sums import HARNESS, write_sums

FUTURE = "10000.0.0"
"""Newer than the working tree."""

HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2}|Unreleased)$", re.MULTILINE)


def changelog(root: Path) -> dict[str, str]:
    """The versions of CHANGELOG.md with their dates, the newest first."""
    return dict(HEADING.findall((root / "CHANGELOG.md").read_text()))


def tag_releases(repository: Path) -> list[str]:
    """Tag each release where there is no tag: on the commit that dated it in CHANGELOG.md.

    Needs the whole history. Returns the versions, the oldest first.
    """
    versions = [v for v, date in reversed(changelog(repository).items()) if date != "Unreleased"]
    tags = run("git", "tag", cwd=repository).output.split()
    for version in versions:
        if version in tags:
            continue
        dated = rf"^## \[{re.escape(version)}\] - [0-9]"
        found = run("git", "log", "--format=%H", "-G", dated, "--", "CHANGELOG.md", cwd=repository)
        commits = found.output.split()
        assert commits, f"no commit dates {version} in CHANGELOG.md: is this a shallow clone?"
        run("git", "tag", version, commits[-1], cwd=repository)
    return versions


def commit(repository: Path, message: str, tag: str | None = None) -> None:
    """Commit everything, and tag it."""
    run("git", "add", "--all", cwd=repository)
    run("git", "commit", "--quiet", "--message", message, cwd=repository)
    if tag:
        run("git", "tag", tag, cwd=repository)


def append(path: Path, text: str) -> None:
    """Add to the end of a file."""
    path.write_text(path.read_text() + text)


QUESTION = """
use_future:
  type: bool
  default: true
  help: Something that nobody has thought of yet
"""


def change_everything(template: Path) -> None:
    """Write the future: every file of the harness and every shared file is another."""
    source = template / "template"
    for path in [*source.rglob("*.py"), *source.rglob("*.py.jinja"), *source.rglob("*.md")]:
        if path.stat().st_size:
            append(path, "# of the future\n")
    for path in source.rglob("*.md.jinja"):
        append(path, "\nOf the future.\n")
    (template / HARNESS / "future.py").write_text('"""New."""\n')
    (source / "tests" / "unit" / "test_future.py").write_text("def test_future(): ...\n")
    write_sums(template)
    append(template / "copier.yml", QUESTION)
    # A library with the name that somebody gave a package.
    replace(template / "copier.yml", " alembic annotated_doc", " alembic metrics annotated_doc")
    configuration = source / "pyproject.toml.jinja"
    replace(configuration, '"pytest-asyncio>=1.5.0"', '"pytest-asyncio>=1.5.0,<99"')
    replace(configuration, 'minversion = "9.2"', 'minversion = "9.2" # {{ use_future }}')
    for path in source.rglob("*ci.y*ml*"):
        append(path, "# of the future\n")
    append(source / "Makefile.jinja", "\n# of the future\n")
    append(source / "compose.yaml.jinja", "# of the future\n")
