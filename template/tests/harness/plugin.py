"""The hooks of pytest, and what they note of a test."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from . import environment, markers
from .checks import failure, integrity, tasks, uncommitted
from .errors import HarnessError
from .harness import Harness
from .layout import CONFTEST, NAME, PACKAGE
from .layout import HARNESS as FOLDER
from .markers import needs_database
from .recipe import Recipe
from .servers import guard
from .summary import Summary

pytest_plugins = [
    f"{__package__}.{name}" for name in ("checks.offline", "checks.read_only", "fixtures")
]

HARNESS = pytest.StashKey[Harness]()


@dataclass
class Attempt:
    """One run of a test; plugins run some several times, and each is judged alone.

    Attributes:
        session: that of its `db_session`.
        failed: whether a part of it has failed so far.
        ending: whether its own fixtures are gone, or about to go.
        left: what it left behind, in paragraphs.
        problems: what the harness could not do, in paragraphs.
    """

    session: Any = None
    failed: bool = False
    ending: bool = False
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


ATTEMPT = pytest.StashKey[Attempt]()
_CURRENT = pytest.StashKey[pytest.Item]()
_TOTAL = pytest.StashKey[Summary]()


class _Hooks:
    @pytest.hookspec(firstresult=True)
    def pytest_harness_recipe(self) -> Recipe | None:
        """The service's recipe. Implemented in `tests/conftest.py`."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(_Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    markers.add_option(parser)
    parser.addini(
        "harness_allowed_hosts",
        "Hosts, besides this one, on which tests may create and drop databases. Read from pyproject.toml alone.",
        type="linelist",
        default=[],
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.option.setuponly:  # shows the fixtures of each test, which takes no server
        config.option.setupplan = True
    markers.register(config)
    if not hasattr(environment, "current"):
        raise pytest.UsageError(
            f"{PACKAGE} is missing, or does not call prepare() of {NAME}.environment, nor does a conftest.py, "
            "so nothing points the service at its tests' database: see docs/testing.md."
        )
    if config.getoption("usepdb", False) or config.getoption("trace", False):
        environment.current = replace(environment.current, limits={})
    try:
        guard.check_url(environment.current)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    if environment.current.redis:  # a conftest.py need not name it
        config.pluginmanager.import_plugin(f"{__package__}.valkey")
    config.stash[HARNESS] = Harness(
        environment.current, lambda: _recipe(config), lambda line: _say(config, line)
    )
    config.stash[_TOTAL] = Summary()
    config.pluginmanager.register(_HeaderPrinter(config))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Keep options that ask for every file (`--doctest-modules`, `python_files`) from importing these."""
    return collection_path == Path(__file__).parent or None


def pytest_report_header() -> list[str]:
    """Say it where the harness itself was edited: the next update takes that back."""
    names = integrity.edited(Path(__file__).parent)
    if not names:
        return []
    return [
        f"{FOLDER}: {', '.join(names)} edited here. An update replaces these files; "
        f"override what they do in {CONFTEST}."
    ]


def _recipe(config: pytest.Config) -> Recipe:
    recipe = config.hook.pytest_harness_recipe()
    if not isinstance(recipe, Recipe):
        raise HarnessError(
            f"{CONFTEST} does not define pytest_harness_recipe(): see docs/testing.md."
        )
    return recipe


def _say(config: pytest.Config, line: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(line)


def attempt(item: pytest.Item) -> Attempt:
    """The present run of a test. Another plugin may have failed it before ours saw it."""
    return item.stash.setdefault(ATTEMPT, Attempt())


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start where the first lines can still tell of it. What fails here fails the first test.

    Commands that only show something come here without tests, or not at all.
    """
    options = session.config.option
    if options.collectonly or options.setupplan or session.testsfailed:
        return
    harness = session.config.stash[HARNESS]
    if any(needs_database(item) for item in session.items):
        with suppress(Exception):
            harness.start()
        for line in harness.header:
            _say(session.config, line)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_CURRENT] = item
    item.stash[ATTEMPT] = Attempt()
    uncommitted.begin()
    tasks.begin(item)
    if needs_database(item):
        own = item.get_closest_marker("own_database") is not None
        try:
            item.config.stash[HARNESS].before_test(own_database=own)
        except HarnessError as error:
            item.session.shouldfail = "there is no fresh database for the tests"
            pytest.fail(str(error), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """What a fixture of a wider scope than the test stores stays for its scope."""
    if fixturedef.scope == "function":
        return (yield)
    afterwards = ExitStack()
    fixturedef.addfinalizer(afterwards.close)  # the last of them
    around = request.config.stash[HARNESS].around_fixture(fixturedef.argname, afterwards)
    with around, tasks.of_a_wider_fixture():
        result = yield
    fixturedef.addfinalizer(lambda: _settle_before_fixture(request.config))  # the first
    return result


def _settle_before_fixture(config: pytest.Config) -> None:
    """The test's own fixtures are gone, those of wider scopes are about to go: now is its end."""
    item = config.stash.get(_CURRENT, None)
    if item is not None and attempt(item).ending:
        _settle(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    tasks.watch(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    harness = item.config.stash[HARNESS]
    if report.failed:
        attempt(item).failed = True
        if needs_database(item) and (log := harness.log_of_test()):
            report.sections.append((f"Postgres log {report.when}", log))
        if needs_database(item) and (holders := harness.explain(report.longreprtext)):
            report.sections.append((f"Postgres connections {report.when}", holders))
        if report.when == "call" and needs_database(item):
            if open_ := harness.sessions_of_test():
                report.sections.append(("Postgres sessions", open_))
            if lost := uncommitted.found(attempt(item).session):
                told = "Nobody else could see this. What a test arranges, it commits:"
                report.sections.append(("Not committed", "\n".join([told, *lost])))
    if harness.header and hasattr(item.config, "workerinput"):
        report.__dict__["harness_header"] = list(harness.header)
        harness.header.clear()
    return report


class _HeaderPrinter:
    """In the process that prints: shows what pytest-xdist's workers have to tell of their start."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        lines = getattr(report, "harness_header", [])
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if lines and reporter is not None:
            reporter.ensure_newline()
            for line in lines:
                reporter.write_line(f"[{getattr(report, 'worker_id', '?')}] {line}")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """After the test's own fixtures: whatever it left goes."""
    tasks.watch_teardown(item, nextitem)
    current = attempt(item)
    current.ending = True
    try:
        result = yield
    finally:
        _settle(item)
        current.ending = False
        problems = current.problems
        if item.get_closest_marker("allow_leaks") is None:
            problems = current.left + problems
        if problems:
            pytest.fail("\n\n".join(problems), pytrace=False)
    return result


def _settle(item: pytest.Item) -> None:
    """Put back what a test changed, and note what it left."""
    current = attempt(item)
    if found := tasks.left(item):
        current.left.append(
            "The test left asyncio tasks running, now cancelled:\n" + "\n".join(found)
        )
    if needs_database(item):
        harness = item.config.stash[HARNESS]
        try:
            current.left += harness.after_test(item.nodeid, failed=current.failed)
        except HarnessError as error:
            current.problems.append(str(error))
        if harness.lost:
            item.session.shouldfail = "the tests' database server failed"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    summary = session.config.stash[HARNESS].stop()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["harness"] = asdict(summary)
        return
    total = session.config.stash[_TOTAL]
    total.add(summary)
    if total.problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    failure.forget(environment.current)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    sent = getattr(node, "workeroutput", {}).get("harness")
    if sent:
        node.config.stash[_TOTAL].add(Summary(**sent))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    total = config.stash[_TOTAL]
    for kept in total.kept:
        terminalreporter.write_line(f"kept the database of {kept}")
    for left in total.left:
        terminalreporter.write_line(left, yellow=True)
    for problem in total.problems:
        terminalreporter.write_line(problem, red=True)
    if total.clones:
        terminalreporter.write_line(
            f"databases: {total.put_back} put back, {total.replaced} replaced in {total.seconds:.2f} s, "
            f"{total.clones} clones, {total.leaks or 'no'} leaked sessions"
        )
