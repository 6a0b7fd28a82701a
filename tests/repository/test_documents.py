"""Documents say what is there: commands, files and questions that they name exist."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import Render
from tests.support.command import run
from tests.support.project import Project
from tests.support.template import ROOT
from tests.variants import FEATURES

CONCERNS = [
    "README.md",
    "Makefile",
    "copier.yml",
    "template/*.md*",
    "template/Makefile.jinja",
    "template/{{ package_name }}/config.py.jinja",
    "*/harness/__init__.py",
    "*/harness/development/__init__.py",
]

DOCUMENTS = ["README.md", "AGENTS.md", "CHANGELOG.md", "docs/testing.md", "docs/operations.md"]

COMMAND = re.compile(r"\bmake ([a-z]+(?: [a-z]+)*)")
PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?(?<=[/a-z]))`")
TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
LINK = re.compile(r"\]\((?!http)([^)#]+)")

# Suffixes by which a word in backticks is known to be a file.
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".yml", ".ini", ".example", ".lock", "/")
MADE_BY_A_RUN = {"uv.lock", ".env", ".dev/"}


def test_documents_name_targets_that_exist(service: Project) -> None:
    makefile = (service.path / "Makefile").read_text()
    targets = set(TARGET.findall(makefile))
    for name in DOCUMENTS:
        for line in re.findall(r"`make [^`]*`|^\s*make .*$", text(service, name), re.MULTILINE):
            for words in COMMAND.findall(line):
                assert set(words.split()) <= targets, f"{name}: {line}"


def test_documents_name_files_that_exist(service: Project) -> None:
    missing = [
        f"{document}: {path}"
        for document in DOCUMENTS
        for path in [*PATH.findall(text(service, document)), *LINK.findall(text(service, document))]
        if path.endswith(SUFFIXES)
        and path not in MADE_BY_A_RUN
        and not (service.path / path).exists()
        and not (service.path / document).parent.joinpath(path).exists()
    ]
    assert not missing


SHOW_SETTINGS = """\
import json
from {package}.config import Settings
print(json.dumps({{n.upper(): f.default for n, f in Settings.model_fields.items()}}, default=str))
"""


def test_operations_name_settings_that_exist(service: Project) -> None:
    """With the defaults that they have."""
    show = SHOW_SETTINGS.format(package=service.package.name)
    shown = service.run(service.python, "-c", show).output
    settings = json.loads(shown.splitlines()[-1])
    operations = text(service, "docs/operations.md")
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", operations))
    assert named - settings.keys() == {"FORWARDED_ALLOW_IPS"}, "uvicorn's"
    limits = re.findall(r"^\| `(\w+)` \| .* \| (\d+) in an? (?:minute|hour) \|$", operations, re.M)
    there = {name: value for name, value in settings.items() if name.endswith("_LIMIT")}
    if "JWT_SECRET" in settings:
        assert there == {name: int(default) for name, default in limits}
        lifetimes = {"JWT": 15 * 60, "SESSION": 30 * 24 * 3600, "PROOF": 3600}
        for name, seconds in lifetimes.items():
            assert settings[f"{name}_LIFETIME_SECONDS"] == seconds


def test_map_of_the_harness_names_each_file() -> None:
    """Its own, or the folder of files that are no modules of it."""
    harness = ROOT / "template/tests/harness"
    maps = [harness / "__init__.py", harness / "development/__init__.py"]
    named = set(re.findall(r"\w+", "".join(str(ast.get_docstring(_parsed(m))) for m in maps)))
    files = [path for path in harness.rglob("*.py") if not path.stem.startswith("__")]
    assert len(files) > 50
    for path in files:
        is_module = (path.parent / "__init__.py").exists()
        assert (path.stem if is_module else path.parent.name) in named, path


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_help_lists_each_target(service: Project) -> None:
    for folder in (service.path, ROOT):
        phony = re.search(
            r"^\.PHONY: help (.*) uv$", (folder / "Makefile").read_text(), re.MULTILINE
        )
        assert phony
        shown = service.run("make", "-C", folder, "help").output
        listed = re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE)
        assert listed == phony[1].split()


def test_make_shows_what_it_would_do(tmp_path: Path) -> None:
    """And does nothing of it."""
    said = run("make", "-n", "service", f"DEST={tmp_path}/service", cwd=ROOT).output
    assert "copier copy" in said
    assert not [*tmp_path.iterdir()]


def test_readme_lists_each_question() -> None:
    questions = {
        name
        for name, question in yaml.safe_load((ROOT / "copier.yml").read_text()).items()
        if isinstance(question, dict)
        and not name.startswith("_")
        and question.get("when", True)
        and question.get("ask", True)
    }
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(listed) == questions


def text(service: Project, name: str) -> str:
    """A rendered document."""
    return (service.path / name).read_text()


PRELUDE = """\
import asyncio
from functools import partial

import pytest
from httpx import AsyncClient
{redis}
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.models import Customer

normalize = str.strip


"""


@pytest.mark.parametrize("answers", [{}, dict.fromkeys(FEATURES, False)], ids=["all on", "all off"])
def test_examples_of_the_guide_pass(
    answers: dict[str, bool], rendered: Render, tmp_path: Path
) -> None:
    """The tests shown in docs/testing.md, with the imports that a reader adds."""
    project = rendered(**answers).copy_to(tmp_path / "service")
    blocks = re.findall(r"^```python\n(.*?)^```", text(project, "docs/testing.md"), re.M | re.S)
    examples = [block for block in blocks if "def test_" in block]
    prelude = PRELUDE.format(redis="from redis.asyncio import Redis" if not answers else "")
    (project.path / "tests" / "test_guide.py").write_text(prelude + "\n\n".join(examples))
    project.pytest("tests/test_guide.py", "--no-cov", passed=3 if answers else 5)
