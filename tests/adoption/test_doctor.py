"""`python -m tests.harness doctor`: a project is broken in one way after the other, and told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.project import Project, files
from tests.support.releases import append
from tests.support.small import replace
from tests.support.tiers import first
from tests.variants import ALL_OFF

CONCERNS = [
    "*/harness/doctor.py",
    "*/harness/checks/looking/*",
    "template/docs/adopting-the-harness.md",
]

SECTION = "[tool.pytest.ini_options]\n"

# What is broken: a file, a text in it and another one, and what is said.
FAULTS = {
    "prepare is not called": (
        "tests/__init__.py",
        "prepare(",
        "dict(",
        "missing  tests/__init__.py does not call prepare(). Write there, at its top:\n"
        "             from tests.harness.environment import prepare\n",
    ),
    "another variable": (
        "tests/__init__.py",
        "prepare(",
        'prepare(database_url="DSN", DATABASE_URL="postgresql+asyncpg://a@127.0.0.1/b", ',
        "leads to postgresql+asyncpg://a@127.0.0.1/b, not to the tests' database: "
        "prepare() sets DSN, and it was made from something else",
    ),
    "the harness is not loaded": (
        "tests/conftest.py",
        'pytest_plugins = ["tests.harness.plugin"',
        'others = ["tests.harness.plugin"',
        "missing  tests/conftest.py has the recipe, but does not load the harness",
    ),
    "no recipe": (
        "tests/conftest.py",
        "def pytest_harness_recipe(",
        "def recipe(",
        "missing  no conftest.py that pytest loads at its start has a recipe",
    ),
    "a session that is nowhere": (
        "tests/conftest.py",
        "app.database:AsyncSessionLocal",
        "app.nowhere:AsyncSessionLocal",
        "the recipe: app.nowhere:AsyncSessionLocal, which tests/conftest.py names, can't be",
    ),
    "metadata without tables": (
        "tests/conftest.py",
        '"app.models:Base.metadata"',
        '"sqlalchemy.orm:DeclarativeBase"',
        "missing  the recipe: sqlalchemy.orm:DeclarativeBase has no tables",
    ),
    "a source that is not there": (
        "tests/conftest.py",
        "sources=[",
        'sources=["gone.csv", ',
        "missing  the recipe's source gone.csv does not exist in ",
    ),
    "a module that is not there": (
        "tests/conftest.py",
        'module("app.seed_database")',
        'module("seeds.all")',
        "-m seeds.all can't be found: there is no module seeds.all",
    ),
    "a program that is not there": (
        "tests/conftest.py",
        'module("app.seed_database")',
        '["no-such-program", "now"]',
        "missing  the recipe's command no-such-program now can't be found: not on PATH",
    ),
    "both in the mode auto": (
        "pyproject.toml",
        SECTION,
        f'{SECTION}anyio_mode = "auto"\n',
        "missing  anyio and pytest-asyncio are both in the mode auto, and claim the same tests",
    ),
    "strict, and no marks": (
        "pyproject.toml",
        'asyncio_mode = "auto"',
        'asyncio_mode = "strict"',
        "the mode strict. Write in pyproject.toml, under [tool.pytest.ini_options]:\n"
        '             asyncio_mode = "auto"\n',
    ),
    "loops of different scopes": (
        "pyproject.toml",
        'asyncio_default_test_loop_scope = "session"',
        'asyncio_default_test_loop_scope = "function"',
        "missing  async fixtures have the event loop of the session, and tests each one of its own",
    ),
    "pytest-asyncio is turned off": (
        "pyproject.toml",
        'addopts = "',
        'addopts = "-p no:asyncio ',
        "needs pytest-asyncio, and an option of this run",
    ),
    "a marker of their own": (
        "pyproject.toml",
        SECTION,
        f'{SECTION}markers = ["unit: of one class"]\n',
        "missing  the project has a marker `unit` of its own (unit: of one class), by which",
    ),
    "no tests": (
        "pyproject.toml",
        'testpaths = ["tests"]',
        'testpaths = ["docs"]',
        "missing  pytest finds no tests",
    ),
    "too old": (
        "tests/harness/checks/versions.py",
        '"psycopg": "3.2.11"',
        '"psycopg": "99.5"',
        "missing  tests/harness needs psycopg 99.5 or newer, and there is ",
    ),
}


@pytest.fixture(scope="module")
def well(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that was asked about once: its modules are compiled, which is half of the time."""
    project = rendered(**ALL_OFF).copy_to(tmp_path_factory.mktemp("well") / "service")
    project.tool("tests.harness", "doctor")
    return project


@pytest.fixture
def sick(well: Project, tmp_path: Path) -> Iterator[Project]:
    """A project of this test's own."""
    shutil.copytree(well.path, tmp_path / "service")
    yield Project(tmp_path / "service", well.answers, well.python)
    remove_clusters(tmp_path)


def test_healthy(sick: Project) -> None:
    before = files(sick.path)
    said = sick.tool("tests.harness", "doctor").output
    assert "missing " not in said
    assert said.endswith("\nNothing is missing: run pytest.\n")
    assert "ok       an engine leads to the tests' database: asyncpg\n" in said
    assert files(sick.path) == before


@pytest.mark.parametrize("fault", first(1, FAULTS))
def test_fault(fault: str, sick: Project) -> None:
    path, old, new, said = FAULTS[fault]
    replace(sick.path / path, old, new)
    output = sick.tool("tests.harness", "doctor", status=1).output
    assert said in output
    assert "Traceback" not in output


def test_package_that_is_none(sick: Project) -> None:
    (sick.path / "tests/__init__.py").unlink()
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert (
        "missing  nothing calls prepare(). Write in tests/__init__.py, which is not there:" in said
    )


def test_folder_around_the_tests_is_no_package(sick: Project) -> None:
    """By the name that it was asked by, nothing of the harness could be imported under pytest."""
    backend = sick.path / "backend"
    backend.mkdir()
    for name in ("app", "tests", "pyproject.toml"):
        (sick.path / name).rename(backend / name)
    (backend / "tests/__init__.py").unlink()
    said = sick.tool("backend.tests.harness", "doctor", status=1).output
    assert (
        "missing  pytest imports the harness as tests.harness, and not as backend.tests.harness: "
        f"{backend} is no package. Ask again there:\n"
        f"             cd {backend}\n"
        "             python -m tests.harness doctor\n\n1 missing" in said
    )
    there = Project(backend, sick.answers, sick.python)
    said = there.tool("tests.harness", "doctor", status=1).output
    assert "\n             from tests.harness.environment import prepare\n" in said


def test_another_configuration_wins(sick: Project) -> None:
    (sick.path / "pytest.ini").write_text("[pytest]\n")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "missing  pytest reads pytest.ini alone, and not the section in pyproject.toml" in said
    assert "\n             asyncio_mode = auto\n" in said


def test_no_configuration(sick: Project) -> None:
    """What it tells to write finds the tests, wherever they are."""
    (sick.path / "pyproject.toml").unlink()
    (sick.path / "tests").rename(sick.path / "qa")
    for path in (sick.path / "qa").rglob("*.py"):
        path.write_text(re.sub(r"""(from |")tests\.""", r"\1qa.", path.read_text()))
    said = sick.tool("qa.harness", "doctor", status=1).output
    assert "missing  pytest reads no configuration. Write in pyproject.toml:\n" in said
    assert '\n             testpaths = ["qa"]\n' in said
    assert "finds no tests" not in said, "it does not find them because of that"


@pytest.mark.slow
def test_settings_of_native_types(sick: Project) -> None:
    """Pytest refuses a file with both tables: what the doctor says must not bring the other."""
    configuration = sick.path / "pyproject.toml"
    replace(configuration, SECTION, "[tool.pytest]\n")
    addopts = re.search(r'^addopts = "(.*)"$', configuration.read_text(), re.MULTILINE)
    assert addopts
    replace(configuration, addopts[0], f"addopts = {addopts[1].split()}")
    replace(configuration, 'asyncio_mode = "auto"\n', "")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert 'under [tool.pytest]:\n             asyncio_mode = "auto"\n' in said
    replace(configuration, "[tool.pytest]\n", '[tool.pytest]\nasyncio_mode = "auto"\n')
    sick.tool("tests.harness", "doctor")

    append(configuration, f"\n{SECTION}harness_unit_marker = 'pure'\n")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "missing  pytest does not start:\n" in said
    assert "Cannot use both [tool.pytest]" in said
    assert said.endswith("\n1 missing: mend the first, then ask again.\n")


def test_made_before_prepare(sick: Project) -> None:
    (sick.path / "conftest.py").write_text("import app.database\n")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "was imported before tests. Import `tests` first" in said
    assert "\n             import tests\n" in said


@pytest.mark.thorough
def test_variable_that_the_project_sets_itself(sick: Project) -> None:
    """A service without an engine reads it when it starts. What a shell has may be of others."""
    (sick.path / "conftest.py").write_text(
        "import os\n\nimport tests\n\n"
        'os.environ.setdefault("SHOP_DSN", "postgresql://a:secret@127.0.0.1:5433/shop")\n'
    )
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "missing  SHOP_DSN, which the project sets, leads to 127.0.0.1:5433/shop, not to" in said
    assert "secret" not in said
    env = {"SHOP_DSN": "postgresql://a@127.0.0.1:5433/another"}
    assert "another" not in sick.tool("tests.harness", "doctor", env=env).output


@pytest.mark.thorough
def test_one_engine_of_two_leads_elsewhere(sick: Project) -> None:
    """All that the service has are led to one database."""
    (sick.path / "conftest.py").write_text(
        "import tests\nfrom sqlalchemy import create_engine\n\n"
        'audit = create_engine("postgresql+psycopg://a@127.0.0.1:5433/audit")\n'
    )
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert (
        "missing  an engine (psycopg) leads to postgresql+psycopg://a@127.0.0.1:5433/audit" in said
    )
    assert "Tests have one database" in said
    assert "\n             prepare(database_url={" in said


@pytest.mark.thorough
def test_service_that_can_not_be_imported_before_prepare(sick: Project) -> None:
    """The package of the tests is as it should be: nobody has come to it."""
    root = sick.path / "conftest.py"
    root.write_text("import os\n\nassert os.environ['ENVIRONMENT'] == 'test'\n")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "before prepare() of tests/__init__.py was done. If that is the service, import" in said
    assert "\n             import tests\nmissing  pytest does not start:\n" in said
    assert "does not call prepare()" not in said
    root.write_text(f"import tests\n{root.read_text()}")
    sick.tool("tests.harness", "doctor")


def test_file_that_can_not_be_imported(sick: Project) -> None:
    (sick.path / "tests/unit/test_lost.py").write_text("import nowhere\n")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert (
        "missing  tests/unit/test_lost.py can't be collected: "
        "ModuleNotFoundError: No module named 'nowhere'" in said
    )


def test_conftest_that_can_not_be_imported(sick: Project) -> None:
    replace(sick.path / "tests/conftest.py", "pytest_plugins =", "import nowhere\npytest_plugins =")
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "missing  pytest does not start:\n" in said
    assert "E   ModuleNotFoundError: No module named 'nowhere'" in said


def test_without_a_driver(sick: Project, tmp_path: Path) -> None:
    """It says so itself, before anything that needs one is imported."""
    (tmp_path / "none" / "psycopg").mkdir(parents=True)
    (tmp_path / "none" / "psycopg" / "__init__.py").write_text("raise ImportError('none')\n")
    env = {"PYTHONPATH": str(tmp_path / "none")}
    said = sick.tool("tests.harness", "doctor", env=env, status=None).output
    assert "ok       installed: " in said


@pytest.mark.slow
def test_commands_find_what_tests_find(sick: Project) -> None:
    """By pytest's `pythonpath`; where a module is not found, it is said."""
    (sick.path / "code").mkdir()
    sick.package.rename(sick.path / "code/app")
    (sick.path / "code/random.py").write_text("raise ImportError('not the one of Python')\n")
    recipe = sick.path / "tests/conftest.py"
    replace(recipe, '"app/seed_database.py"', '"code/app/seed_database.py"')
    said = sick.tool("tests.harness", "doctor", status=1).output
    assert "No module named 'app'" in said

    replace(sick.path / "pyproject.toml", 'pythonpath = ["."]', 'pythonpath = [".", "code"]')
    sick.tool("tests.harness", "doctor")
    sick.pytest("--no-cov", "tests/integration/test_seed_database.py", passed=3)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "importer", first(1, ["tests/unit/test_pagination.py", "tests/conftest.py"])
)
def test_modules_beside_the_tests(importer: str, sick: Project) -> None:
    """Which were found by their names alone until the harness made a package of the folder."""
    (sick.path / "tests/helpers.py").write_text("NAME = 'Ada'\n")
    path = sick.path / importer
    path.write_text(path.read_text().replace("import pytest", "import helpers\nimport pytest", 1))
    said = sick.tool("tests.harness", "doctor", status=1).output
    advice = '             pythonpath = [".", "tests"]\n'
    assert "missing  tests import helpers, which is beside them." in said
    assert f"Write in pyproject.toml, under [tool.pytest.ini_options]:\n{advice}" in said
    replace(sick.path / "pyproject.toml", 'pythonpath = ["."]', advice.strip())
    sick.tool("tests.harness", "doctor")
