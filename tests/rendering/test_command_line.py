"""Copier as a user calls it: through the command line, and never with `--trust`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.copier import copier
from tests.support.project import ANSWERS_FILE, Project
from tests.support.releases import commit
from tests.support.template import FUTURE

CONCERNS = ["copier.yml"]


def test_copy_says_what_to_do_next(template: Path, tmp_path: Path) -> None:
    done = copier("copy", "--defaults", template, tmp_path / "service", cwd=tmp_path)
    assert "make test" in done.output
    answers = Project.read(tmp_path / "service", Path(sys.executable)).answers
    assert answers["_commit"] == FUTURE
    assert answers["_src_path"] == str(template)


def test_answers_are_taken_and_stored(template: Path, tmp_path: Path) -> None:
    data = ["--data", "package_name=shop", "--data", "use_redis=false"]
    copier("copy", "--defaults", *data, template, tmp_path / "service", cwd=tmp_path)
    project = Project.read(tmp_path / "service", Path(sys.executable))
    assert project.answers["package_name"] == "shop"
    assert project.answers["use_redis"] is False
    assert (project.package / "main.py").is_file()


@pytest.mark.slow
def test_update_without_a_new_release_changes_nothing(template: Path, tmp_path: Path) -> None:
    project = tmp_path / "service"
    copier("copy", "--defaults", template, project, cwd=tmp_path)
    run("git", "init", "--quiet", cwd=project)
    commit(project, "Scaffold")
    copier("update", "--defaults", cwd=project)
    assert not run("git", "status", "--porcelain", cwd=project).output


def test_nothing_ignored_by_git_is_rendered(template: Path, tmp_path: Path) -> None:
    """An update would overwrite the user's edits in such a file without a word."""
    project = tmp_path / "service"
    copier("copy", "--defaults", template, project, cwd=tmp_path)
    run("git", "init", "--quiet", cwd=project)
    commit(project, "Scaffold")
    ignored = run("git", "status", "--porcelain", "--ignored", cwd=project).output
    assert not ignored
    assert (project / ANSWERS_FILE).is_file()
