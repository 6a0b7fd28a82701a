"""`scope=harness`: services that were not made by this template, and get its harness.

Two of those in `services/` had no tests that use a database: in `wired/` is what their developers
write as docs/adopting-the-harness.md tells them, and their first tests with the harness. Those that
had some are tested in test_existing_suites.py.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adoption.guide import ADOPTED
from tests.conftest import Render
from tests.support.command import run
from tests.support.copier import copier, unmerged, update
from tests.support.embedded import remove_clusters
from tests.support.project import ANSWERS_FILE, Project, files
from tests.support.releases import FUTURE, append, commit
from tests.support.template import FUTURE as PRESENT
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = ["copier.yml", "template/tests/*whole_service*", "template/docs/adopting-the-harness.md"]

GUIDES = ("docs/adopting-the-harness.md", "docs/testing.md")

# What the guide tells to install.
FRAGMENT = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Service:
    """One of them: answers for the template, and how many tests it has in the end."""

    name: str
    answers: dict[str, str]
    passed: int


SERVICES = [
    Service("ledger", {"package_name": "ledger", "use_redis": "false"}, passed=6),
    Service("bookshop", {"package_name": "bookshop", "use_redis": "true"}, passed=5),
]


@pytest.fixture(
    params=first(1, SERVICES[::-1]),
    ids=lambda service: service.name,
)
def adopted(
    request: pytest.FixtureRequest, versions: Path, tmp_path: Path, python: Path
) -> Iterator[tuple[Service, Project]]:
    """A service that was just given the harness, before anybody fills anything in."""
    service: Service = request.param
    path = tmp_path / service.name
    shutil.copytree(ADOPTED / service.name, path, ignore=shutil.ignore_patterns("wired"))
    run("git", "init", "--quiet", cwd=path)
    commit(path, "A service")
    before = files(path)
    data = [word for name, answer in service.answers.items() for word in ("-d", f"{name}={answer}")]
    copier("copy", "-d", "scope=harness", *data, "-r", PRESENT, versions, path, cwd=tmp_path)
    after = files(path)
    assert {name: after[name] for name in before} == before, "what was there is as it was"
    added = {name for name in after if not name.startswith("tests/harness/")} - before.keys()
    written = {ANSWERS_FILE, *GUIDES, "tests/__init__.py", "tests/conftest.py"}
    assert added == written
    yield service, Project.read(path, python)
    remove_clusters(tmp_path)


def wire(service: Service, project: Project) -> None:
    """What its developers do next, as the guide says."""
    shutil.copytree(ADOPTED / service.name / "wired", project.path, dirs_exist_ok=True)
    (fragment,) = FRAGMENT.findall((project.path / GUIDES[0]).read_text())
    append(project.path / "pyproject.toml", f"\n{fragment}")
    assert "Nothing is missing" in project.tool("tests.harness", "doctor").output
    commit(project.path, "Test on a real Postgres")


@pytest.mark.thorough
def test_adopted_service(adopted: tuple[Service, Project], monkeypatch: pytest.MonkeyPatch) -> None:
    service, project = adopted
    wire(service, project)
    monkeypatch.setenv("PYTHONPATH", str(project.path / "src"))  # as if it were installed
    assert "built in" in project.pytest("-v", passed=service.passed).golden()[1]
    assert project.pytest("-v", "-n", "2", passed=service.passed).golden()[1] == "reused"

    before = files(project.path)
    update(project)
    now = files(project.path)
    assert not unmerged(project)
    touched = {name for name in now.keys() | before if now.get(name) != before.get(name)}
    others = {name for name in touched if not name.startswith("tests/harness/")}
    assert others == {ANSWERS_FILE, *GUIDES}
    assert b"of the future" in now["tests/harness/golden/build.py"]
    commit(project.path, f"Update to {FUTURE}")
    assert "the harness changed" in project.pytest("-v", passed=service.passed).golden()[1]


@pytest.mark.thorough
def test_what_is_not_filled_in_is_explained(
    adopted: tuple[Service, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, project = adopted
    monkeypatch.setenv("PYTHONPATH", str(project.path / "src"))
    wire(service, project)
    recipe = project.path / "tests" / "conftest.py"
    text = recipe.read_text()
    for name in re.findall(r"session=\"(.*)\"", text):
        recipe.write_text(text.replace(name, "nowhere:nothing"))
        said = project.tool("pytest", status=1).output
        assert "INTERNALERROR" not in said
        assert "nowhere:nothing, which tests/conftest.py names, can't be imported" in said


def test_imports_below_src_count(rendered: Render) -> None:
    """What a seeder imports decides what it stores, in that layout as well."""
    code = (
        "import pathlib, sys; from tests.harness.golden.fingerprint import with_imports\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for path in with_imports(root, root / 'src/ledger/transfers.py'): print(path.name)"
    )
    project = rendered(**ALL_OFF)
    found = project.run(project.python, "-c", code, ADOPTED / "ledger").output.split()
    assert sorted(found) == ["__init__.py", "db.py", "transfers.py"]


@pytest.mark.thorough
def test_file_that_is_there_is_left_alone(versions: Path, tmp_path: Path) -> None:
    path = tmp_path / "service"
    (path / "tests").mkdir(parents=True)
    (path / "docs").mkdir()
    names = ("tests/__init__.py", "tests/conftest.py", "docs/testing.md")
    for name in names:
        (path / name).write_text("# Ours.\n")
    (path / ANSWERS_FILE).write_text("_src_path: another template\n")
    run("git", "init", "--quiet", cwd=path)
    commit(path, "A service")
    data = ["-d", "scope=harness", "-d", "use_redis=false", "-d", "package_name=docker.Shop"]
    copy = ["copy", "--defaults", *data, "-r", PRESENT]
    assert "another template" in copier(*copy, versions, path, cwd=tmp_path, status=1).output
    answers = ["--answers-file", ".copier-answers.harness.yml"]
    said = copier(*copy, *answers, versions, path, cwd=tmp_path).output
    assert "python -m tests.harness doctor" in said
    commit(path, "Adopt the harness")
    copier("update", "--defaults", *answers, "-r", FUTURE, cwd=path)
    assert not run("git", "diff", "--name-only", "--diff-filter=U", cwd=path).output
    for name in names:
        assert (path / name).read_text() == "# Ours.\n"
    assert (path / ANSWERS_FILE).read_text() == "_src_path: another template\n"
    assert "Of the future" in (path / "docs" / "testing-harness.md").read_text()
    assert "of the future" in (path / "tests" / "harness" / "plugin.py").read_text()


def test_another_harness_is_left_alone(versions: Path, tmp_path: Path) -> None:
    """Copier would ask of some of its files whether to write over them, and mix the two."""
    path = tmp_path / "service"
    (path / "tests/harness").mkdir(parents=True)
    (path / "tests/harness/plugin.py").write_text("# Ours.\n")
    before = files(path)
    data = ["-d", "scope=harness", "-d", "package_name=shop"]
    copy = ["copy", "--defaults", *data, "-r", PRESENT]
    said = copier(*copy, versions, path, cwd=tmp_path, status=1).output
    assert "another package tests/harness" in said
    assert files(path) == before
    copier(*copy, "-d", "tests_folder=tests/real", versions, path, cwd=tmp_path)
    assert (path / "tests/real/harness/plugin.py").is_file()


@pytest.mark.parametrize(
    ("folder", "packages", "command"),
    [
        ("tests", [], "python -m tests.harness doctor"),
        ("backend/tests", [], "cd backend && python -m tests.harness doctor"),
        ("shop/testing", ["shop"], "python -m shop.testing.harness doctor"),
        ("src/shop/tests", ["src/shop"], "cd src && python -m shop.tests.harness doctor"),
        ("one/two/tests", ["one"], "cd one/two && python -m tests.harness doctor"),
    ],
)
def test_copy_says_how_to_ask_the_doctor(
    folder: str, packages: list[str], command: str, versions: Path, tmp_path: Path
) -> None:
    """By the name that the tests have for pytest."""
    path = tmp_path / "a [service]"
    for package in packages:
        (path / package).mkdir(parents=True)
        (path / package / "__init__.py").touch()
    data = ["-d", "scope=harness", "-d", "package_name=shop", "-d", f"tests_folder={folder}"]
    said = copier("copy", "--defaults", *data, "-r", PRESENT, versions, path, cwd=tmp_path).output
    assert f"\n\n  {command}\n" in said
    assert (path / folder / "harness" / "doctor.py").is_file()


@pytest.mark.slow
def test_tests_that_were_moved(versions: Path, tmp_path: Path) -> None:
    """Else an update would leave the harness as it is, and lay another where the tests were."""
    path = tmp_path / "service"
    data = ["-d", "scope=harness", "-d", "package_name=shop"]
    copier("copy", "--defaults", *data, "-r", PRESENT, versions, path, cwd=tmp_path)
    (path / "backend").mkdir()
    (path / "tests").rename(path / "backend/tests")
    run("git", "init", "--quiet", cwd=path)
    commit(path, "Move the tests")
    before = files(path)
    said = copier("update", "--defaults", "-r", FUTURE, cwd=path, status=1).output
    assert "There is no harness in tests/. If you moved the tests" in said
    assert files(path) == before
    told = ["-d", "tests_folder=backend/tests"]
    copier("update", "--defaults", *told, "-r", FUTURE, cwd=path)
    now = files(path)
    assert not any(name.startswith("tests/") for name in now)
    assert b"of the future" in now["backend/tests/harness/plugin.py"]
    assert now["backend/tests/conftest.py"] == before["backend/tests/conftest.py"]
