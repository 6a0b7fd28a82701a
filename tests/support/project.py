"""A rendered project, and what a test does with one."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pytest_copie.plugin import Copie

from tests.support import failures
from tests.support.command import Finished, run
from tests.support.once import locked

ANSWERS_FILE = ".copier-answers.yml"
# Those that the code was last merged with.
CODE_ANSWERS = ".copier-answers.code.yml"

SUMMARY = re.compile(r"^=* ?(?P<counts>(?:\d+ [a-z]+,? ?)+) in [\d.]+s", re.MULTILINE)

# Made by a run, not by the render.
BYPRODUCTS = {
    ".coverage",
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "__pycache__",
}


def counted(output: str) -> dict[str, int]:
    """The numbers of pytest's last summary, as `{"passed": 31, "error": 2}`; none without one."""
    found = list(SUMMARY.finditer(output))
    parts = found[-1]["counts"].split(", ") if found else []
    return {word.removesuffix("s"): int(n) for n, word in (p.split() for p in parts)}


@dataclass(frozen=True)
class Outcome:
    """What a rendered project's pytest run ended with."""

    status: int
    output: str
    counts: dict[str, int]

    def golden(self) -> tuple[str, str]:
        """What the header says: the golden database's name, and how it came to be there."""
        (found,) = set(re.findall(r"golden: (\w+), (.*)$", self.output, re.MULTILINE))
        return found[0], found[1]


@dataclass(frozen=True)
class Project:
    """A rendered project and the Python that runs it."""

    path: Path
    answers: Mapping[str, Any]
    python: Path

    def __post_init__(self) -> None:
        failures.trace.projects.append(self.path)

    @classmethod
    def read(cls, path: Path, python: Path) -> Project:
        """The project in `path`, with the answers that Copier stored there."""
        return cls(path, yaml.safe_load((path / ANSWERS_FILE).read_text()), python)

    @property
    def package(self) -> Path:
        """The folder of the service's own code."""
        return self.path / str(self.answers["package_name"])

    def run(
        self,
        *command: str | Path,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 180,
        status: int | None = 0,
    ) -> Finished:
        """Run a command in the project's root."""
        return run(*command, cwd=self.path, env=env, timeout=timeout, status=status)

    def tool(
        self,
        *command: str | Path,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 180,
        status: int | None = 0,
    ) -> Finished:
        """Run `python -m …` in the project's root."""
        return self.run(self.python, "-m", *command, env=env, timeout=timeout, status=status)

    def pytest(
        self,
        *options: str,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 600,
        status: int = 0,
        **counts: int,
    ) -> Outcome:
        """Run the project's tests and ask for exactly these counts (`passed=31`), and no others.

        A count of 0 is the same as none.
        A run that collected nothing, skipped something or warned is told from a green one.
        """
        with locked(self.path):  # two runs in one directory write the same coverage data
            done = self.tool("pytest", *options, env=env, timeout=timeout, status=status)
        outcome = counted(done.output)
        assert outcome, "pytest printed no summary"
        outcome.pop("deselected", None)
        counts = {word: number for word, number in counts.items() if number}
        assert outcome == counts, f"asked for {counts}, got {outcome}"
        return Outcome(done.status, done.output, outcome)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Each rendered file, with its path relative to the project's root."""
        for path in sorted(self.path.rglob("*")):
            relative = path.relative_to(self.path)
            if path.is_file() and not BYPRODUCTS.intersection(relative.parts):
                yield relative.as_posix(), path

    def copy_to(self, path: Path) -> Project:
        """A copy of the rendered files, to be changed by one test."""
        shutil.copytree(self.path, path, ignore=shutil.ignore_patterns(*BYPRODUCTS))
        return Project(path, self.answers, self.python)


def files(folder: Path) -> dict[str, bytes]:
    """Each file of a project by its path, without what a run or git made."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not BYPRODUCTS & set(path.relative_to(folder).parts)
    }


def render(template: Path, project: Path, answers: Mapping[str, Any]) -> None:
    """Render the template with `answers` to `project`.

    Raises what Copier raised, for an answer that was refused. pytest-copie ignores names that are
    no question of the template; here they fail.
    """
    with TemporaryDirectory(dir=project.parent) as scratch:
        result = Copie(template, Path(scratch), Path(scratch)).copy(extra_answers=dict(answers))
        if result.exception:
            raise result.exception
        stored = {name: result.answers.get(name) for name in answers}
        assert stored == dict(answers), "an answer was not taken"
        assert result.project_dir
        shutil.move(result.project_dir, project)


def install(project: Project, environment: Path, base: str = sys.executable) -> Project:
    """Make a virtual environment with what the project's pyproject.toml names for developers.

    `base` is the Python that it is made of. Returns the project, to be run by the environment's.
    """
    uv = os.environ["UV"]
    run(uv, "venv", "--quiet", "--python", base, environment, cwd=project.path)
    python = environment / "bin" / "python"
    wanted = ["-r", "pyproject.toml", "--group", "dev"]
    project.run(uv, "pip", "install", "--quiet", "--python", python, *wanted, timeout=600)
    return Project(project.path, project.answers, python)
