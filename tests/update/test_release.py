"""Releases: found in the history, tagged or not, and made only when everything is ready."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

from tests.support.command import Finished, run
from tests.support.releases import commit, tag_releases

CONCERNS = ["CHANGELOG.md", "Makefile", "tests/update/release.py"]

TODAY = date.today().isoformat()


def heading(version: str, day: str) -> str:
    """An entry of a changelog."""
    return f"## [{version}] - {day}\n\n### When you update\n\nNothing.\n\n"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A repository with two releases, and work on a third."""
    repository = tmp_path / "repository"
    repository.mkdir()
    run("git", "init", "--quiet", cwd=repository)
    changelog = repository / "CHANGELOG.md"
    entries = ""
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        changelog.write_text(heading(version, "Unreleased") + entries)
        commit(repository, f"Begin {version}")
        if version == "2.0.0":
            break
        entries = heading(version, "2030-01-01") + entries
        changelog.write_text(entries)
        commit(repository, f"Release {version}")
        changelog.write_text(entries.replace("Nothing", f"Nothing, since {version}"))
        commit(repository, "Correct a word")
    return repository


def subject(repository: Path, version: str) -> str:
    """What the commit of a release says."""
    return run("git", "log", "-1", "--format=%s", version, cwd=repository).output.strip()


def test_release_is_the_commit_that_dated_it(history: Path) -> None:
    assert tag_releases(history) == ["1.0.0", "1.1.0"]
    assert [subject(history, v) for v in ("1.0.0", "1.1.0")] == ["Release 1.0.0", "Release 1.1.0"]


def test_tag_that_is_there_is_right(history: Path) -> None:
    run("git", "tag", "1.0.0", "HEAD~1", cwd=history)
    assert tag_releases(history) == ["1.0.0", "1.1.0"]
    assert subject(history, "1.0.0") == "Correct a word"
    assert subject(history, "1.1.0") == "Release 1.1.0"


@pytest.fixture
def ready(template: Path, tmp_path: Path) -> Path:
    """The template, with everything done for the release of 7.0.0."""
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "--no-tags", template, clone, cwd=tmp_path)
    changelog = clone / "CHANGELOG.md"
    head, first, rest = changelog.read_text().partition("## [")
    changelog.write_text(head + heading("7.0.0", TODAY) + first + rest)
    commit(clone, "Release 7.0.0")
    return clone


def release(clone: Path, *arguments: str, status: int) -> Finished:
    """`make release`, with tests of updates that are collected only."""
    command = [sys.executable, "-m", "tests.update.release", *arguments]
    return run(*command, cwd=clone, env={"PYTEST_ADDOPTS": "--collect-only"}, status=status)


def test_release_is_tagged(ready: Path) -> None:
    release(ready, "7.0.0", status=0)
    assert run("git", "cat-file", "-t", "7.0.0", cwd=ready).output == "tag\n", "annotated"
    assert "is tagged already" in release(ready, "7.0.0", status=1).output


def test_release_that_is_not_ready_is_refused(ready: Path) -> None:
    assert "give one like 1.2.3" in release(ready, "", status=1).output
    assert f"no heading `## [7.1.0] - {TODAY}`" in release(ready, "7.1.0", status=1).output
    (ready / "stray").touch()
    assert "not clean" in release(ready, "7.0.0", status=1).output
    (ready / "stray").unlink()
    changelog = ready / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("### When you update", "### Notes", 1))
    commit(ready, "Forget a part")
    assert 'no part "When you update"' in release(ready, "7.0.0", status=1).output
    assert not run("git", "tag", cwd=ready).output


def test_notes_are_what_the_changelog_says(ready: Path) -> None:
    shown = release(ready, "--notes", "7.0.0", status=0).output
    assert shown == "### When you update\n\nNothing.\n"
    assert "### Added" in release(ready, "--notes", "1.0.0", status=0).output, "the last of them"
    assert "no release 7.1.0" in release(ready, "--notes", "7.1.0", status=1).output
