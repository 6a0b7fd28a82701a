"""Answers of every kind: refused with a reason, or what they render passes its checks."""

from __future__ import annotations

import ast
import configparser
import keyword
import os
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st

from tests.conftest import Render
from tests.support.once import locked
from tests.support.project import Project, render
from tests.variants import FEATURES, OTHER_NAMES

CONCERNS = [
    "copier.yml",
    "template/{{ package_name }}/main.py.jinja",
    "template/pyproject.toml.jinja",
    "template/compose.yaml.jinja",
    "template/README.md.jinja",
]

# What means something to one of the languages that the answers end up in.
PIECES = [
    *("'", '"', "'''", '"""', "\\", "\\n", "\\u0041", "`", "$", "$(id)", "${x}", "%s", "%", "#"),
    *("{", "}", "{{ 7 * 7 }}", "{% raw %}", "{# x #}", "[", "]", "<b>", "&amp;", "-->", ": ", "- "),
    *("!", "!!python/object", "@", "*", "&", "|", ">", "?", ",", "=", "~", "null", "true", "no"),
    *("0", "007", "1e3", "0x1F", "2024-01-01", "1_000", ".", "..", "/", "//", ";", " ", "  ", "\t"),
    *(
        "\n",
        "\r",
        "\0",
        "\x1b[0m",
        "\x7f",
        "\xa0",
        "\u2028",
        "\u200b",
        "\ufeff",
        "\u202e",
        "\U0001f600",
    ),
    *("Zoë", "東京", "ß", "İ", "\u0301", "service", "FastAPI", "x" * 40, "Ada"),
]


def texts(longest: int) -> st.SearchStrategy[str]:
    """Texts of a few pieces, and any others that Unicode has; some of them too long."""
    any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    parts = st.lists(st.sampled_from(PIECES) | any_text, max_size=8)
    return parts.map("".join) | st.just("x" * longest) | st.just("x" * (longest + 1))


def fitting(text: str, longest: int) -> str:
    """What can be taken of a text."""
    printable = "".join(char for char in text if char == " " or char.isprintable())
    return printable.strip()[:longest].strip()


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,10}(_[a-z0-9]{1,8}){0,2}", fullmatch=True)
PACKAGES = (
    NAMES
    | st.from_regex(r"[A-Za-z0-9_.\- ]{0,35}", fullmatch=True)
    | st.sampled_from([*keyword.kwlist, *keyword.softkwlist, *sorted(sys.stdlib_module_names)])
    | st.sampled_from([*PIECES, "fastapi", "tests", "con", "service", "a", "x" * 30, "x" * 31])
)

GOOD = st.fixed_dictionaries(
    {
        "project_name": texts(80).map(lambda text: fitting(text, 80)).filter(bool),
        "project_description": texts(200).map(lambda text: fitting(text, 200)).filter(bool),
        "package_name": NAMES,
    },
    optional={
        **{feature: st.booleans() for feature in FEATURES},
        "ci": st.sampled_from(["github", "gitlab", "none"]),
        "python_version": st.sampled_from(["3.11", "3.12", "3.13", "3.14"]),
    },
)
# Half of them with one answer that may be anything.
ANY = st.one_of(
    st.just({}),
    *(
        st.fixed_dictionaries({name: strategy})
        for name, strategy in {
            "project_name": texts(80),
            "project_description": texts(200),
            "package_name": PACKAGES,
        }.items()
    ),
)
ANSWERS = st.builds(lambda good, one: {**good, **one}, GOOD, ANY)

WITHOUT_A_LIMIT_OF_TIME = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a failure is readable; to shrink it takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def unacceptable(answers: dict[str, Any]) -> set[str]:
    """The questions whose answers can't be taken, as far as that needs no list of names."""
    found = set()
    for name, longest in ("project_name", 80), ("project_description", 200):
        text = answers[name]
        printable = text.replace(" ", "x").isprintable()
        if not text.strip() or text != text.strip() or len(text) > longest or not printable:
            found.add(name)
    package = answers["package_name"]
    if (
        not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", package)
        or len(package) > 30
        or keyword.iskeyword(package)
        or package in sys.stdlib_module_names
    ):
        found.add("package_name")
    return found


def refused(template: Path, path: Path, answers: dict[str, Any]) -> tuple[str, str] | None:
    """Render. Returns the question whose answer was refused, and the reason."""
    try:
        render(template, path, answers)
    except ValueError as error:
        found = re.match(r"Validation error for question '(\w+)': (\S.{20,})", str(error), re.S)
        if not found:
            raise
        return found[1], found[2]
    return None


def check(template: Path, python: Path, answers: dict[str, Any], folder: Path) -> Project | None:
    """Render, and check what that gives; None if the answers are refused, and rightly so."""
    note(repr(answers))
    wrong = unacceptable(answers)
    if refusal := refused(template, folder / "service", answers):
        question, reason = refusal
        # A library or a folder of the project: only the template knows which there are.
        clash = question == "package_name" and re.search("library|another file", reason)
        assert question in wrong or clash, f"{answers[question]!r} was refused: {reason}"
        assert not (folder / "service").exists()
        event(f"refused: {question}")
        return None
    assert not wrong, f"{wrong} should have been refused"
    event("rendered")
    project = Project.read(folder / "service", python)
    check_files(project)
    check_names(project, answers)
    project.tool("ruff", "format", "--check", "--diff", "--no-cache", ".")
    project.tool("ruff", "check", "--no-cache", ".")
    return project


def check_files(project: Project) -> None:
    """Each file is valid in its language."""
    for name, path in project.files():
        text = path.read_bytes().decode()
        if name.endswith(".py"):
            compile(text, name, "exec")
        elif name.endswith(".toml"):
            tomllib.loads(text)
        elif name.endswith((".yml", ".yaml")):
            yaml.safe_load(text)
        elif name.endswith(".ini"):
            configparser.ConfigParser(interpolation=None).read_string(text)


def check_names(project: Project, answers: dict[str, Any]) -> None:
    """The answers are what each reader of a file sees, whatever its rules of quoting."""
    name, description = answers["project_name"], answers["project_description"]
    main = ast.parse((project.package / "main.py").read_text())
    (service,) = (
        node
        for node in ast.walk(main)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Service"
    )
    said = {word.arg: getattr(word.value, "value", None) for word in service.keywords}
    assert (said["title"], said["description"]) == (name, description)

    metadata = tomllib.loads((project.path / "pyproject.toml").read_text())["project"]
    assert metadata["description"] == description
    slug = metadata["name"]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
    compose = yaml.safe_load((project.path / "compose.yaml").read_text())
    assert (compose["name"], compose["services"]["service"]["image"]) == (slug, slug)
    url = compose["services"]["service"]["environment"]["DATABASE_URL"]
    assert url.rpartition("/")[2] == answers["package_name"]
    readme = (project.path / "README.md").read_text()
    assert readme.startswith(f"# {name}\n\n{description}\n")


def check_build(project: Project) -> None:
    """The distribution is built, and says what the answers say."""
    built = project.path / "dist"
    project.run(os.environ["UV"], "build", "--quiet", "--wheel", "--out-dir", built, timeout=300)
    (wheel,) = built.glob("*.whl")
    package = str(project.answers["package_name"])
    with zipfile.ZipFile(wheel) as archive:
        assert f"{package}/main.py" in archive.namelist()
        (file,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = BytesParser(policy=default).parsebytes(archive.read(file))
    assert metadata["Summary"] == project.answers["project_description"]


@contextmanager
def kept_if_it_fails(below: Path) -> Iterator[Path]:
    """A folder of one example's own."""
    folder = Path(tempfile.mkdtemp(dir=below))
    yield folder
    shutil.rmtree(folder)


@settings(WITHOUT_A_LIMIT_OF_TIME, max_examples=8, derandomize=True)
@given(answers=ANSWERS)
def test_answers_are_refused_or_rendered(
    answers: dict[str, Any], template: Path, python: Path, tmp_path: Path
) -> None:
    with kept_if_it_fails(tmp_path) as folder:
        check(template, python, answers, folder)


@pytest.mark.slow
@settings(WITHOUT_A_LIMIT_OF_TIME, max_examples=30)
@given(answers=ANSWERS)
def test_many_answers_are_refused_or_rendered(
    answers: dict[str, Any], template: Path, python: Path, tmp_path: Path
) -> None:
    with kept_if_it_fails(tmp_path) as folder:
        check(template, python, answers, folder)


@pytest.mark.thorough
def test_a_render_of_odd_names_is_built(rendered: Render, tmp_path: Path) -> None:
    check_build(rendered(**OTHER_NAMES).copy_to(tmp_path / "service"))


@pytest.mark.slow
@settings(WITHOUT_A_LIMIT_OF_TIME, max_examples=6)
@given(answers=GOOD)
def test_renders_are_built_and_checked_by_mypy(
    answers: dict[str, Any], template: Path, python: Path, shared: Path, tmp_path: Path
) -> None:
    with kept_if_it_fails(tmp_path) as folder:
        project = check(template, python, answers, folder)
        if project is not None:  # not a library's name by chance
            check_build(project)
            with locked(shared / "mypy"):
                project.tool("mypy", "--cache-dir", shared / "mypy", timeout=600)
