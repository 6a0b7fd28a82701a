"""Suites that exist, of several styles: first as their developers had them, then with the harness.

Bodies of tests and the service's own code stay; what else is written is the example of the guide.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adoption.guide import ADOPTED, GUIDE, examples, lines, wiring, written
from tests.conftest import Render
from tests.support.command import run
from tests.support.copier import copier, unmerged, update
from tests.support.embedded import remove_clusters
from tests.support.once import made_once
from tests.support.postgres import Server, packaged, running
from tests.support.project import ANSWERS_FILE, Project, files
from tests.support.releases import commit
from tests.support.template import FUTURE as PRESENT
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = [
    "tests/adoption/services/*",
    "template/docs/adopting-the-harness.md",
    "template/tests/*whole_service*",
    "template/{{ harness_elsewhere }}",
]

# What the guide tells to install.
INSTALL = re.compile(r"^```toml\n(\[dependency-groups\].*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Suite:
    """One of the services.

    Attributes:
        name: of its folder.
        passed: how many tests it has.
        plain: the variables by which it finds a Postgres, with `{port}` and `{name}` in them.
        first: a module that makes its tables, as its developers call it.
        without: an option for the run without the harness, which has no pytest-asyncio to tell it.
        tests: the answer for `tests_folder`.
    """

    name: str
    passed: int
    plain: dict[str, str]
    first: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tests: str = "tests"


CONFIGURATION = {"conftest.py", "__init__.py", "pyproject.toml", "pytest.ini"}

# What the newest libraries say of older ways is not what is tried here.
QUIET = ("-W", "ignore::DeprecationWarning", "-W", "ignore::UserWarning")

URL = "://tester@127.0.0.1:{port}/{name}"
SUITES = [
    Suite("clinic", 6, {"CLINIC_DSN": f"postgresql+asyncpg{URL}"}, without=("-p", "no:asyncio")),
    Suite(
        "depot",
        8,
        {
            "DATABASE__HOST": "127.0.0.1",
            "DATABASE__PORT": "{port}",
            "DATABASE__USER": "tester",
            "DATABASE__PASSWORD": "",
            "DATABASE__NAME": "{name}",
        },
        first=("alembic", "upgrade", "head"),
        tests="depot/testing",
    ),
    Suite(
        "parcels",
        8,
        {"PARCELS_DATABASE_URL": f"postgresql+asyncpg{URL}"},
        without=("-p", "no:asyncio"),
    ),
    Suite("polls", 11, {"POLLS_URL": f"postgresql+psycopg{URL}"}, without=("-p", "no:asyncio")),
]


@pytest.fixture(scope="session")
def adopters(shared: Path, template: Path) -> Path:
    """A Python with what these services and the guide ask for, and with nothing else."""

    def make(environment: Path) -> None:
        python = environment / "bin/python"
        run(os.environ["UV"], "venv", "--quiet", environment, cwd=template)
        (fragment,) = INSTALL.findall(GUIDE.read_text())
        (guide := environment / "pyproject.toml").write_text(fragment)
        wanted = ["--group", f"{guide}:test", "httpx", "pytest-randomly", "pytest-xdist"]
        for suite in SUITES:
            wanted += ["-r", str(ADOPTED / suite.name / "pyproject.toml")]
        install = (os.environ["UV"], "pip", "install", "--quiet", "--python", python)
        run(*install, *wanted, cwd=environment, timeout=600)

    return made_once(shared / "adopters", make) / "bin" / "python"


@pytest.fixture(scope="module")
def plain_postgres(rendered: Render) -> Iterator[Server]:
    """A Postgres as their developers had one."""
    with packaged(rendered(**ALL_OFF)) as binaries, running(binaries) as server:
        yield server


@pytest.fixture(params=first(1, SUITES), ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    """Each in turn."""
    found: Suite = request.param
    return found


@pytest.fixture
def own(suite: Suite, tmp_path: Path) -> Iterator[Path]:
    """A service as its developers had it."""
    path = tmp_path / suite.name
    shutil.copytree(ADOPTED / suite.name, path, ignore=shutil.ignore_patterns("wired"))
    run("git", "init", "--quiet", cwd=path)
    commit(path, "A service")
    yield path
    remove_clusters(tmp_path)


def copy(suite: Suite, path: Path, versions: Path, python: Path) -> Project:
    """Step 1 of the guide."""
    data = ("-d", "scope=harness", "-d", f"package_name={suite.name}", "-d", "use_redis=false")
    folder = ("-d", f"tests_folder={suite.tests}")
    copier("copy", "--defaults", *data, *folder, "-r", PRESENT, versions, path, cwd=path.parent)
    return Project.read(path, python)


def doctor(suite: Suite, project: Project, status: int) -> str:
    """Step 3."""
    name = f"{suite.tests.replace('/', '.')}.harness"
    return project.tool(name, "doctor", status=status).output


@pytest.mark.slow
def test_suite_as_it_was(suite: Suite, own: Path, plain_postgres: Server, adopters: Path) -> None:
    plain_postgres.sql(f"CREATE DATABASE {suite.name}")
    at = {"port": str(plain_postgres.port), "name": suite.name}
    env = {name: value.format(**at) for name, value in suite.plain.items()}
    project = Project(own, {}, adopters)
    if suite.first:
        project.tool(*suite.first, env=env)
    for _ in range(2):
        project.pytest(*suite.without, *QUIET, env=env, passed=suite.passed)


def test_suite_with_the_harness(suite: Suite, own: Path, versions: Path, adopters: Path) -> None:
    before = files(own)
    project = copy(suite, own, versions, adopters)
    assert {name: files(own)[name] for name in before} == before, "what was there is as it was"
    assert "missing " in doctor(suite, project, status=1)

    shutil.copytree(ADOPTED / suite.name / "wired", own, dirs_exist_ok=True)
    added, taken = lines(wiring(suite.name))
    assert added <= 25, f"{added} lines of wiring"
    now = files(own)
    changed = {name for name in before if now[name] != before[name]}
    assert not [n for n in changed if "test_" in n or Path(n).name not in CONFIGURATION]
    said = doctor(suite, project, status=0)
    assert "missing " not in said
    print(f"{suite.name}: {suite.passed} tests, +{added} -{taken} lines")

    assert "built in" in project.pytest(*QUIET, passed=suite.passed).golden()[1]
    assert project.pytest("-p", "no:randomly", *QUIET, passed=suite.passed).golden()[1] == "reused"


@pytest.mark.slow
def test_in_parallel_in_other_orders_and_updated(
    suite: Suite, own: Path, versions: Path, adopters: Path
) -> None:
    project = copy(suite, own, versions, adopters)
    shutil.copytree(ADOPTED / suite.name / "wired", own, dirs_exist_ok=True)
    commit(own, "Test on a real Postgres")
    project.pytest("-n", "2", *QUIET, passed=suite.passed)
    for seed in range(3):
        project.pytest(f"--randomly-seed={seed}", *QUIET, passed=suite.passed)
    before = files(own)
    update(project)
    assert not unmerged(project)
    now = files(own)
    touched = {name for name in now.keys() | before if now.get(name) != before.get(name)}
    others = {name for name in touched if not name.startswith(f"{suite.tests}/harness/")}
    assert others == {ANSWERS_FILE, "docs/testing.md", "docs/adopting-the-harness.md"}
    assert "the harness changed" in project.pytest(*QUIET, passed=suite.passed).golden()[1]


def test_examples_of_the_guide_are_what_is_tested() -> None:
    text = GUIDE.read_text()
    assert sorted(examples(text)) == sorted(suite.name for suite in SUITES)
    assert written(text) == text, "python -m tests.adoption.guide writes them anew"
