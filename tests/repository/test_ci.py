"""The template's own CI: linted as that of a render is, and it runs what is there."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rendering.test_linters import GITHUB, OFFLINE, SCHEMAS, lint
from tests.service.test_pythons import PYTHONS
from tests.support.command import run
from tests.support.template import ROOT

CONCERNS = [
    ".ci/run",
    "copier.yml",
    ".github/*",
    "renovate.json",
    "Makefile",
    "*.md",
    "*pyproject.toml*",
]

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORM = ".github/ISSUE_TEMPLATE/fault.yml"

# What no target of the Makefile is for.
OTHERS = {
    ("python", "-m", "pip", "install"),
    ("gh", "release", "create"),
}


def jobs(workflow: Path) -> dict[str, Any]:
    """The jobs of a workflow, by their names."""
    found: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return found


def commands(workflow: Path) -> Iterator[list[str]]:
    """Each command that its steps run, in words, with each value of a variable from its matrix."""
    for job in jobs(workflow).values():
        matrix = job.get("strategy", {}).get("matrix", {})
        of_matrix = {f"${{{{ matrix.{name} }}}}": values for name, values in matrix.items()}
        for step in job["steps"]:
            env = step.get("env", {})
            for values in itertools.product(*(of_matrix.get(one, [one]) for one in env.values())):
                chosen = dict(zip(env, values, strict=True))
                text = string.Template(step.get("run", "")).safe_substitute(chosen)
                for line in text.splitlines():
                    yield shlex.split(line.partition(" > ")[0])


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_passes_its_linters(workflow: Path) -> None:
    for schema in SCHEMAS[GITHUB]:
        lint(ROOT, "check-jsonschema", "--builtin-schema", schema, workflow)
    lint(ROOT, "yamllint", "--strict", "-c", ROOT / ".yamllint.yaml", workflow)
    lint(ROOT, "zizmor", *OFFLINE, "--strict-collection", workflow)
    if shutil.which("actionlint"):  # its package downloads the binary, so it is not among ours
        run("actionlint", workflow, cwd=ROOT)


def test_script_works_on_its_own_clone(tmp_path: Path) -> None:
    """Where the shell's CDPATH names a folder with another, too."""
    (tmp_path / ".ci").mkdir()
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$PWD"\n')
    make.chmod(0o755)
    env = {"CDPATH": str(tmp_path), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    assert {*run("bash", ".ci/run", cwd=ROOT, env=env).output.splitlines()} == {str(ROOT)}


def test_other_files_fit_their_schemas() -> None:
    lint(ROOT, "check-jsonschema", "--builtin-schema", "vendor.renovate", "renovate.json")
    lint(ROOT, "check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", FORM)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_runs_what_is_there(workflow: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    for program, *words in commands(workflow):
        if program == "bash":
            assert (ROOT / words[0]).is_file(), words
        elif program == "make":
            target, *variables = words
            assert target in targets
            for variable in variables:
                assert f"$({variable.partition('=')[0]})" in makefile, variable
        else:
            assert any((program, *words)[: len(other)] == other for other in OTHERS), program


def test_ci_run_is_what_ci_runs() -> None:
    for workflow in WORKFLOWS:
        assert ["bash", ".ci/run"] in list(commands(workflow))


def test_what_is_said_after_a_copy_commits_the_lock_file() -> None:
    """The first `make` writes it, and CI of a service takes no other versions."""
    said = yaml.safe_load((ROOT / "copier.yml").read_text())["_message_after_copy"]
    assert said.index("make test") < said.index("git add")


def test_pythons_are_those_of_the_question() -> None:
    """Tried by CI, tried here as far as the machine has them, and let in by both projects."""
    matrix = jobs(WORKFLOWS[0])["service"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    questions = yaml.safe_load((ROOT / "copier.yml").read_text())
    assert questions["python_version"]["choices"] == PYTHONS
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    rendered = (ROOT / "template" / "pyproject.toml.jinja").read_text()
    (of_a_service,) = re.findall(r'^requires-python = "(.*)"$', rendered, re.MULTILINE)
    assert own == of_a_service == f">={PYTHONS[0]}"
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"Python (3\.\d+),? (?:and|or) newer", readme)) == {PYTHONS[0]}


def test_postgres_is_tried_from_the_oldest_to_that_of_compose() -> None:
    matrix = jobs(WORKFLOWS[0])["postgres"]["strategy"]["matrix"]["postgres"]
    versions = [int(version) for version in matrix]
    binaries = (ROOT / "template/tests/harness/servers/binaries.py").read_text()
    (oldest,) = re.findall(r"^OLDEST = (\d+)$", binaries, re.MULTILINE)
    compose = (ROOT / "template" / "compose.yaml.jinja").read_text()
    (newest,) = re.findall(r"pgvector:pg(\d+)", compose)
    assert versions == list(range(int(oldest), int(newest) + 1))
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"Postgres (\d+) (?:and|or) newer", operations)) == {oldest}
