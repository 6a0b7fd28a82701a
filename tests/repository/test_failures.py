"""A meta-test that fails shows what it rendered and how to go on by hand, and keeps both."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.template import ROOT

CONCERNS = ["tests/conftest.py", "pyproject.toml"]

FAILS = """\
import sys
from pathlib import Path

from tests.support.project import Project, render

SCRIPT = "head -n 1 README.md; echo \\"$WORD, ${CI-none}, ${HELD-none}\\"; exit 3"


def test_passes(tmp_path):
    Project(tmp_path, {}, Path(sys.executable)).run("echo", "another test's")


def test_fails(template, tmp_path):
    render(template, tmp_path / "service", {})
    project = Project.read(tmp_path / "service", Path(sys.executable))
    project.run("sh", "-c", SCRIPT, env={"WORD": "it's", "HELD": None})
"""

LATER = "def test_later(tmp_path): ..."


@pytest.mark.slow
@pytest.mark.parametrize("workers", [["-n", "2"], []], ids=["two workers", "alone"])
def test_what_a_failure_shows_can_be_repeated(workers: list[str], tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "CI": "true", "HELD": "by the user"}
    options = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    tests = tmp_path / "test_fails.py"
    tests.write_text(FAILS)
    inner = [*options, "-p", "tests.conftest", *workers]
    output = run(sys.executable, *inner, tests, cwd=tmp_path, env=env, status=1).output
    assert "another test's" not in output
    project = shown(output, "Rendered projects")
    command = shown(output, "The last command, to repeat by hand")
    for _ in range(4):  # runs of rendered services, and by hand: pytest keeps three
        (tmp_path / "test_later.py").write_text(LATER)
        run(sys.executable, *options, "test_later.py", cwd=tmp_path, env=env)
    repeated = run("sh", "-c", command, cwd=Path("/"), env=env, status=3)
    assert repeated.output == "# Support Desk\nit's, none, none\n"
    assert (Path(project) / "README.md").is_file()


def shown(output: str, title: str) -> str:
    """The one line of a section of a report."""
    (line,) = re.findall(rf"^-+ {title} -+\n(.+)$", output, re.MULTILINE)
    return str(line)
