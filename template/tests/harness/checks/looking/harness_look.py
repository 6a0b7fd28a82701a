"""What pytest sees of a project: a plugin for `doctor.py`, which tells it to whom it asks.

It lies in a folder of its own because it must import nothing of the project: `tests/__init__.py` has to
be imported when, and by whom, it would be in any run.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import json
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_PACKAGE = os.environ["HARNESS_LOOKS_FOR"]
_SETTINGS = (
    *("asyncio_mode", "asyncio_default_fixture_loop_scope", "asyncio_default_test_loop_scope"),
    *("anyio_mode", "harness_unit_marker", "markers"),
)
_URL = re.compile(r"postgres(?:ql)?(?:\+\w+)?://")

_seen: dict[str, Any] = {"errors": [], "prepared": None}
_shell = {**os.environ}
_here = sys.path[0]  # which `python -m pytest` puts there, and `pytest` does not
_config: pytest.Config


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    global _config  # noqa: PLW0603 - one process, one configuration
    _config = early_config
    atexit.register(_tell)
    return (yield)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        lines = report.longreprtext.splitlines()
        reasons = [line[1:].strip() for line in lines if line.startswith("E ")] or lines
        _seen["errors"].append([report.nodeid, " ".join(reasons[:3])[:300]])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    _seen["tests"] = _tests(session.items)
    current = getattr(sys.modules.get(f"{_PACKAGE}.environment"), "current", None)
    if current is None:
        return
    _seen["early"] = _imported_before(f"{_PACKAGE}.environment")
    if hasattr(session.config.hook, "pytest_harness_recipe"):
        _seen["recipe"] = _recipe(session.config.hook.pytest_harness_recipe())
    _seen["engines"] = _engines(current.database)
    _seen["settings"] = _urls_in_settings(current.database)
    _seen["variables"] = _urls_in_variables(current.database)


def _tell() -> None:
    current = getattr(sys.modules.get(f"{_PACKAGE}.environment"), "current", None)
    if current is not None:
        _seen["prepared"] = [*current.variables(current.database)]
    inipath = _config.inipath
    _seen["configuration"] = str(inipath) if inipath else None
    for name in _SETTINGS:
        try:
            _seen[name] = _config.getini(name)
        except (KeyError, ValueError):  # of a plugin that is not here
            _seen[name] = None
    _seen["plugins"] = [
        name for name in ("asyncio", "anyio", "xdist") if _config.pluginmanager.has_plugin(name)
    ]
    _seen["loaded"] = f"{_PACKAGE}.plugin" in sys.modules
    _seen["pythonpath"] = [*map(str, _config.getini("pythonpath"))]
    _seen["paths"] = sys.path.copy()
    if _here in sys.path:
        _seen["paths"].remove(_here)
    _seen["importmode"] = _config.getoption("importmode")
    Path(os.environ["HARNESS_LOOK"]).write_text(json.dumps(_seen, default=str), encoding="utf-8")


def _tests(items: list[pytest.Item]) -> dict[str, list[str]]:
    asyncio = sys.modules.get("pytest_asyncio.plugin")
    found: dict[str, list[str]] = {"all": [], "nobody's": []}
    for item in items:
        found["all"].append(item.nodeid)
        if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(item.obj):
            continue
        of_asyncio = asyncio is not None and isinstance(item, asyncio.PytestAsyncioFunction)
        of_anyio = "anyio_backend" in item.fixturenames
        if not (of_asyncio or of_anyio or (item.cls and hasattr(item.cls, "debug"))):
            found["nobody's"].append(item.nodeid)
    return found


def _imported_before(name: str) -> list[str]:
    """Modules of the project that were imported before; the order of `sys.modules` is that of imports."""
    modules = list(sys.modules)
    own = []
    for early in modules[: modules.index(name)]:
        path = getattr(sys.modules[early], "__file__", None) or ""
        inside = path.startswith(f"{_config.rootpath}{os.sep}") and "site-packages" not in path
        inside = inside and path != __file__ and not early.startswith(f"{_PACKAGE}.")
        if inside and not _PACKAGE.startswith(early) and early.rpartition(".")[2] != "conftest":
            own.append(early)
    return own


def _recipe(recipe: Any) -> dict[str, Any] | None:
    if recipe is None:
        return None
    told = {
        "session": recipe.session,
        "metadata": [*recipe.metadatas],
        "sources": [*recipe.sources],
        "seeded": [*recipe.seeded],
        "commands": [[*command] for step in recipe.steps for command in step],
        "wrong": [],
    }
    resolve = sys.modules[f"{_PACKAGE}.recipe"].resolve
    for name in filter(None, (recipe.session, *recipe.metadatas)):
        try:
            found = resolve(name)
            if name == recipe.session:
                told["bind"] = _bind(found)
            elif not getattr(found, "tables", None):
                told["wrong"].append(f"{name} has no tables: nothing has imported the models")
        except Exception as error:  # whatever the service raises
            told["wrong"].append(" ".join(f"{error}".split())[:300])
    return told


def _bind(made: Any) -> str | None:
    """Where the sessions of a recipe connect, as far as can be told without connecting."""
    try:
        while callable(made):
            made = made()
    except RuntimeError:  # it asks for the running task
        return None
    if not hasattr(made, "get_bind"):
        raise TypeError(f"it makes {type(made).__name__}, no session of SQLAlchemy")
    try:
        engine = made.get_bind().engine
    except Exception as error:
        if type(error).__name__ == "UnboundExecutionError":
            return None
        raise
    return str(engine.url.render_as_string(hide_password=True))


def _engines(database: str) -> list[dict[str, Any]]:
    module = sys.modules.get("sqlalchemy.engine")
    if module is None:
        return []
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for engine in gc.get_objects():
        if type(engine) is module.Engine and engine.dialect.name == "postgresql":
            url, pool = engine.url.render_as_string(hide_password=True), type(engine.pool).__name__
            ours = engine.url.database == database
            found[url, pool] = {"url": url, "pool": pool, "ours": ours, "driver": engine.driver}
    return [*found.values()]


def _urls_in_settings(database: str) -> list[list[str]]:
    module = sys.modules.get("pydantic_settings")
    if module is None:
        return []
    found = []
    for settings in gc.get_objects():
        if isinstance(settings, module.BaseSettings):
            for name, value in vars(settings).items():
                text = getattr(value, "unicode_string", value.__str__)() if value else ""
                if where := _elsewhere(text, database):
                    found.append((f"{type(settings).__name__}.{name}", where))
    return [[*one] for one in dict.fromkeys(found)]


def _urls_in_variables(database: str) -> list[list[str]]:
    """Those that the project has set, in a conftest.py or by a file; what a shell has may be of others."""
    return [
        [name, where]
        for name, text in os.environ.items()
        if _shell.get(name) != text
        and not name.startswith(("HARNESS_", "TEST_DATABASE_URL"))
        and (where := _elsewhere(text, database))
    ]


def _elsewhere(text: str, database: str) -> str:
    """Where a URL of Postgres leads, without who comes there; empty if that is the tests' database."""
    return text.rpartition("@")[2] if _URL.match(text) and database not in text else ""
