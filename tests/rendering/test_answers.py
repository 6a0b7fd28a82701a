"""Answers: bad ones are refused with a reason, good ones are stored, whatever they hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Render
from tests.support.command import run
from tests.support.project import Project, render
from tests.support.tiers import first, thorough

CONCERNS = ["copier.yml", "template/{{_copier_conf.answers_file}}.jinja", "template/*code_answers*"]

REFUSED = [
    ("project_name", "", "must not be empty"),
    ("project_name", "   ", "must not be empty"),
    ("project_name", " Desk", "start or end with a space"),
    ("project_name", "x" * 200, "longer than 80"),
    ("project_name", "Support\nDesk", "one line"),
    ("project_name", "Support\x1b[31mDesk", "printable"),
    ("project_description", "", "must not be empty"),
    ("project_description", "x" * 201, "longer than 200"),
    ("project_description", "one\ntwo", "one line"),
    ("package_name", "", "lower-case ASCII letters"),
    ("package_name", "My_App", "lower-case ASCII letters"),
    ("package_name", "my-app", "lower-case ASCII letters"),
    ("package_name", "my app", "lower-case ASCII letters"),
    ("package_name", "my.app", "lower-case ASCII letters"),
    ("package_name", "1app", "lower-case ASCII letters"),
    ("package_name", "_app", "lower-case ASCII letters"),
    ("package_name", "café", "lower-case ASCII letters"),
    ("package_name", "app'; DROP", "lower-case ASCII letters"),
    ("package_name", "app\n", "lower-case ASCII letters"),
    ("package_name", "../app", "lower-case ASCII letters"),
    ("package_name", "x" * 200, "longer than 30"),
    ("package_name", "class", "keyword"),
    ("package_name", "async", "keyword"),
    ("package_name", "logging", "standard library"),
    ("package_name", "asyncio", "standard library"),
    ("package_name", "fastapi", "as a library"),
    ("package_name", "sqlalchemy", "as a library"),
    ("package_name", "redis", "as a library"),
    ("package_name", "langgraph", "as a library"),
    ("package_name", "tests", "another file, directory or database"),
    ("package_name", "migrations", "another file, directory or database"),
    ("package_name", "ingest", "another file, directory or database"),
]


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    first(12, REFUSED, others=thorough),
    ids=[f"{question}-{number}" for number, (question, _, _) in enumerate(REFUSED)],
)
def test_bad_answer_is_refused_with_its_reason(
    question: str, answer: str, reason: str, template: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"question '{question}'.*{reason}"):
        render(template, tmp_path / "service", {question: answer})
    assert not (tmp_path / "service").exists()


@pytest.mark.slow
def test_no_library_is_hidden(template: Path, python: Path) -> None:
    """The libraries' own libraries come and go: each name that could be a package's is known."""
    code = "from importlib.metadata import packages_distributions as p; print(*p())"
    installed = run(python, "-c", code, cwd=template).output.split()
    declared = yaml.safe_load((template / "copier.yml").read_text())
    lists = ("stdlib_modules", "dependency_modules", "project_paths")
    refused = {name for each in lists for name in declared[each]["default"].split()}
    named = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
    assert {name for name in installed if named.fullmatch(name)} <= refused


def test_unknown_choice_is_refused(template: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Invalid choice"):
        render(template, tmp_path / "service", {"ci": "jenkins"})


@pytest.mark.parametrize(
    "answers",
    first(
        3,
        [
            {},
            {"use_auth": False, "use_redis": False, "ci": "none"},
            {"package_name": "a", "project_name": "x" * 80},
            {
                "project_name": "\"'`$(id)`'\"",
                "project_description": "{{ 7 * 7 }} {% raw %} # ' \" \\",
            },
            {"project_name": "東京", "package_name": "tokyo"},
            {"project_name": "FastAPI"},  # the name of a dependency
            {"package_name": "true"},  # a keyword of YAML and of SQL, not of Python
            {"package_name": "none"},
        ],
    ),
    ids=["defaults", "switches", "lengths", "quotes", "non-ascii", "dependency", "true", "none"],
)
def test_answers_are_stored(answers: dict[str, Any], template: Path, tmp_path: Path) -> None:
    render(template, tmp_path / "service", answers)
    stored = Project.read(tmp_path / "service", Path(sys.executable)).answers
    asked = questions(template)
    del asked["guide"], asked["tests_folder"]  # of the harness alone
    asked["use_redis"]["default"] = True  # of a service
    expected = {name: question["default"] for name, question in asked.items()} | answers
    assert {name: stored[name] for name in stored if not name.startswith("_")} == expected


def test_each_question_has_a_default_and_says_what_it_does(template: Path) -> None:
    for name, question in questions(template).items():
        assert "default" in question, name
        assert question["help"].strip(), name


def test_nothing_asks_for_trust(template: Path) -> None:
    settings = yaml.safe_load((template / "copier.yml").read_text())
    assert not {"_tasks", "_migrations", "_jinja_extensions"} & settings.keys()


def test_computed_values_are_not_stored(rendered: Render) -> None:
    assert {"use_knowledge", "project_slug"}.isdisjoint(rendered().answers)


def questions(template: Path) -> dict[str, dict[str, Any]]:
    """The questions whose answers are stored: not the settings, not the computed values."""
    declared = yaml.safe_load((template / "copier.yml").read_text())
    return {
        name: question
        for name, question in declared.items()
        if not name.startswith("_") and question.get("when") is not False
    }
