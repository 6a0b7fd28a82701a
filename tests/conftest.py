"""Renders and environments, made once for a run and shared by its tests and xdist workers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import failures
from tests.support.changed import change, first_of_each
from tests.support.command import run
from tests.support.embedded import remove_clusters
from tests.support.environment import hermetic_environment, let_children_hear
from tests.support.machine import kill, started_with
from tests.support.once import made_once, until_the_last
from tests.support.project import Project, install, render
from tests.support.releases import FUTURE, change_everything, commit, tag_releases
from tests.support.running import SETTINGS, Production, production
from tests.support.small import Small, complete_service
from tests.support.template import ROOT, clone_working_tree
from tests.support.tiers import quick, slow
from tests.variants import ALL_OFF, COMBINATIONS, FEATURES, LEAN, OTHERS, VARIANTS, Variant

# Services with tests of their own.
collect_ignore = ["adoption/services", "harness/programs"]

Render = Callable[..., Project]
# Of `--changed`: what is run, and what is said of it.
SUITES = pytest.StashKey[list[str]]()
HEADER = pytest.StashKey[list[str]]()
# Of a test.
FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--changed",
        nargs="?",
        const="",
        metavar="COMMIT",
        help="run the suites that concern what differs from COMMIT: from the last one, or, where "
        "nothing does, from the one before; each on one variant",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Find out what changed, once for all workers.

    And keep the renders of the last three runs where only runs of these tests delete older ones.

    Rendered services' own runs, and whatever is repeated by hand, would delete them with pytest's.
    """
    folder = Path(tempfile.gettempdir()) / f"meta-tests-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))
    if config.option.changed is None:
        return
    if hasattr(config, "workerinput"):
        config.stash[SUITES] = config.workerinput["suites"]
        return
    try:
        found = change(ROOT, config.option.changed)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if not found.files:
        pytest.exit(f"nothing changed since {found.since}", returncode=0)
    if not found.suites:
        files = ", ".join(found.files)
        pytest.exit(f"concerns no suite: {files}", returncode=pytest.ExitCode.NO_TESTS_COLLECTED)
    config.stash[SUITES] = found.suites
    config.stash[HEADER] = found.told()


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One more than there are processors: tests wait a part of their time, for servers and naps.

    With more, slower: what waits looks again and again. With three more, time-outs are missed.
    """
    found = yield
    return found if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else found + 1


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker."""
    node.workerinput["suites"] = node.config.stash.get(SUITES, None)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return config.stash.get(HEADER, [])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the suites that a change does not concern."""
    suites = config.stash.get(SUITES, None)
    if suites is None or not collection_path.name.startswith("test_"):
        return None
    return True if collection_path.relative_to(ROOT).as_posix() not in suites else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests that differ in the variant alone keep one."""
    if SUITES not in config.stash:
        return
    tests = [(item.nodeid.partition("[")[0], parameters(item)) for item in items]
    firsts = first_of_each(tests, {**VARIANTS, **COMBINATIONS})
    left_out = {item for item, first in zip(items, firsts, strict=True) if not first}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def parameters(item: pytest.Item) -> dict[str, object]:
    """The values that a test is run with."""
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    failures.begin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        given = getattr(item, "funcargs", {}).values()
        failures.trace.projects += [value.path for value in given if isinstance(value, Project)]
        report.sections += failures.trace.sections()
    return report


@pytest.fixture(scope="session")
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A directory of this run, the same for all its xdist workers."""
    base = tmp_path_factory.getbasetemp()
    directory = base.parent if hasattr(request.config, "workerinput") else base
    with until_the_last(directory / "users", lambda: remove_clusters(directory)):
        yield directory


@pytest.fixture(scope="session", autouse=True)
def hermetic(shared: Path) -> Iterator[None]:
    """Keep the developer's settings out of every test."""
    let_children_hear()
    changes = hermetic_environment(shared / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def template(shared: Path, hermetic: None) -> Path:
    """A clone of the template with the working tree committed and tagged."""
    return made_once(shared / "template", clone_working_tree)


@pytest.fixture(scope="session")
def versions(shared: Path, template: Path) -> Path:
    """A repository of the template: the releases, the working tree, and the future."""

    def make(repository: Path) -> None:
        run("git", "clone", "--quiet", template, repository, cwd=template)
        tag_releases(repository)
        change_everything(repository)
        commit(repository, "The future", FUTURE)

    return made_once(shared / "versions", make)


@pytest.fixture(scope="session")
def python(shared: Path, template: Path) -> Path:
    """A Python with what every variant depends on: the defaults variant has all features.

    That each variant's own dependencies suffice is tested in test_own_suite.py.
    """
    project = shared_render(shared, template, {}, Path(sys.executable))
    made_once(shared / "environment", lambda path: install(project, path))
    return shared / "environment" / "bin" / "python"


@pytest.fixture(scope="session")
def rendered(shared: Path, template: Path, python: Path) -> Render:
    """Call it with answers for the project they give: shared by all tests, so never changed."""

    def give(**answers: Any) -> Project:
        return shared_render(shared, template, answers, python)

    return give


@pytest.fixture
def project(rendered: Render, tmp_path: Path) -> Iterator[Project]:
    """A project with the default answers of this test's own, to be changed at will."""
    yield rendered().copy_to(tmp_path / "service")
    remove_clusters(tmp_path)


def shared_render(shared: Path, template: Path, answers: dict[str, Any], python: Path) -> Project:
    """The project that these answers give, rendered by the first worker that asks for it."""
    key = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()[:12]
    directory = made_once(
        shared / "renders" / key,
        lambda directory: render(template, directory, answers),
    )
    return Project.read(directory, python)


@pytest.fixture(scope="session")
def there(rendered: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """A service's servers and its database, as in production, for services that are put to them."""
    directory = tmp_path_factory.mktemp("production")
    with production(rendered().copy_to(directory / "service")) as there:
        yield replace(there, env={**there.env, **SETTINGS})
    remove_clusters(directory)


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each of the variants that are tested in full, in turn."""
    return VARIANTS[request.param]


@pytest.fixture
def lean(rendered: Render, tmp_path: Path) -> Iterator[Project]:
    """A project with few features of this test's own, to be changed at will."""
    yield rendered(**LEAN).copy_to(tmp_path / "lean")
    remove_clusters(tmp_path)


@pytest.fixture(scope="session")
def broken(
    rendered: Render, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Small, dict[str, Any]]]:
    """The service of `small`, and what a build from nothing gives in it."""
    path = tmp_path_factory.mktemp("small") / "service"
    with complete_service(rendered(**ALL_OFF), path) as service_and_content:
        yield service_and_content


@pytest.fixture
def small(request: pytest.FixtureRequest, broken: tuple[Small, Any]) -> Iterator[Small]:
    """A service with five quick tests, to be broken. Its cluster is there, and no failed test's."""
    service, _ = broken
    if not service.home.is_dir():
        service.green()
    yield service
    kill(started_with(service.mark))
    if request.node.stash.get(FAILED, False):
        shutil.rmtree(service.home, ignore_errors=True)


@pytest.fixture
def complete(broken: tuple[Small, Any]) -> Any:
    """What `Small.healed` compares with."""
    return broken[1]


@pytest.fixture
def service(variant: Variant, rendered: Render) -> Project:
    """The variant's project, shared: never changed."""
    return rendered(**variant.answers)


# With all features, with none, and with names of many kinds of letters.
QUICK = ("defaults", f"no {' '.join(FEATURES)}", "other names")
OF_VARIANTS = [name for name in COMBINATIONS if name not in OTHERS]


@pytest.fixture(params=[*quick(*QUICK, of=OF_VARIANTS), *quick(of=OTHERS, others=slow)])
def combination(request: pytest.FixtureRequest, rendered: Render) -> Project:
    """The project of each combination of answers in turn, shared: never changed."""
    return rendered(**COMBINATIONS[request.param])
