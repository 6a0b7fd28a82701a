"""`make test ARGS="--changed"`: which suites a change concerns, and that none is forgotten."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.support.changed import change, suites
from tests.support.command import Finished, run
from tests.support.releases import append, commit
from tests.support.template import ROOT, working_files

CONCERNS = ["tests/*/test_*.py", "tests/conftest.py"]

HARNESS = "template/tests/harness"


@pytest.fixture(scope="module")
def clone(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the template with two commits, to be changed."""
    path = tmp_path_factory.mktemp("changed") / "clone"
    run("git", "clone", "--quiet", template, path, cwd=template)
    return path


@pytest.fixture
def checkout(clone: Path) -> Iterator[Path]:
    """The same, without changes."""
    yield clone
    run("git", "reset", "--quiet", "--hard", "origin/HEAD", cwd=clone)
    run("git", "clean", "--quiet", "-d", "--force", cwd=clone)


def test_each_file_concerns_a_suite() -> None:
    """One that is about it, and not about each file of the template, whatever that is for."""
    about = [suite for suite in suites(ROOT) if "template/*" not in suite.concerns]
    forgotten = {
        name
        for name in working_files()
        if name.startswith(("template/", "tests/")) and not name.endswith("/__init__.py")
        if not any(suite.is_concerned(name) for suite in about)
    }
    # These are looked at whatever changes.
    assert forgotten == {f"{HARNESS}/SHA256SUMS", f"{HARNESS}/.gitattributes"}


def test_each_suite_concerns_files_that_exist() -> None:
    files = working_files()
    assert len(suites(ROOT)) > 50
    for suite in suites(ROOT):
        assert suite.concerns, suite.name
        for pattern in suite.concerns:
            assert any(fnmatchcase(name, pattern) for name in files), f"{suite.name}: {pattern}"


def test_a_change_of_a_harness_file_concerns_few_suites() -> None:
    all_ = suites(ROOT)
    for name in working_files():
        if name.startswith(HARNESS):
            assert sum(suite.is_concerned(name) for suite in all_) < 10, name


CHANGES = {
    f"{HARNESS}/isolation/pools.py": {"harness/test_pools.py", "harness/test_isolation_cases.py"},
    f"{HARNESS}/servers/postgres.py": {"faults/test_server.py", "faults/test_signals.py"},
    "template/{{ package_name }}/api/pagination.py": {"service/test_own_suite.py"},
    "tests/harness/cases/test_codec.py.txt": {"harness/test_isolation_cases.py"},
    "tests/harness/test_costs.py": {"harness/test_costs.py"},
    "tests/support/wire.py": {"faults/test_guard.py", "harness/test_offline.py"},
    "tests/update/release.py": {"update/test_release.py"},
    "copier.yml": {"rendering/test_answers.py", "update/test_update.py"},
}


@pytest.mark.parametrize("file", CHANGES)
def test_what_a_change_concerns(file: str, checkout: Path) -> None:
    append(checkout / file, "\n")
    found = change(checkout)
    assert (found.since, found.files) == ("HEAD", [file])
    assert {f"tests/{name}" for name in CHANGES[file]} <= set(found.suites)
    assert found.others > len(found.suites)
    commit(checkout, "Change it")
    assert change(checkout).files == [file], "of the last commit, where nothing is to commit"


def test_new_and_deleted_files_are_changes(checkout: Path) -> None:
    (checkout / HARNESS / "markers.py").rename(checkout / HARNESS / "isolation" / "new.py")
    found = change(checkout)
    assert found.files == [f"{HARNESS}/isolation/new.py", f"{HARNESS}/markers.py"]
    assert {"tests/harness/test_markers.py", "tests/harness/test_costs.py"} <= set(found.suites)


def collected(checkout: Path, *options: str, status: int = 0) -> Finished:
    """What pytest would run there."""
    command = ("-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *options)
    return run(sys.executable, *command, cwd=checkout, status=status)


def test_tests_of_the_suites_are_run_for_one_variant(checkout: Path) -> None:
    append(checkout / "template" / "{{ package_name }}" / "api" / "pagination.py", "\n")
    output = collected(checkout, "--changed").output
    chosen = change(checkout).suites
    for name in chosen:
        assert f"    {name}" in output.splitlines()
    collects = set(re.findall(r"<Module (test_\w+\.py)>", output))
    assert collects <= {Path(name).name for name in chosen}
    assert "test_own_suite.py" in collects
    of_a_variant = "test_render_passes_formatter_and_linter"
    assert re.findall(rf"<Function {of_a_variant}(.*)>", output) == ["[defaults]"]
    thorough = "test_shell_that_asks_for_another_way_to_measure"
    assert thorough not in output
    assert "Before you push: make test" in output
    quick = collected(checkout).output
    assert len(re.findall(rf"<Function {of_a_variant}", quick)) > 1
    assert thorough not in quick
    assert thorough in collected(checkout, "-m", "not slow").output


@pytest.mark.slow
def test_workers_run_them_as_well(checkout: Path) -> None:
    append(checkout / "tests" / "support" / "environment.py", "\n")
    only = ("--changed", "-k", "test_children_hear_each_signal or test_markers")
    collects = re.findall(r"<Function (.*)>", collected(checkout, *only).output)
    assert {name.partition("[")[0] for name in collects} == {"test_children_hear_each_signal"}
    run_ = run(sys.executable, "-m", "pytest", *only, "-n", "2", cwd=checkout)
    assert re.search(rf"^=+ {len(collects)} passed in", run_.output, re.MULTILINE)


def test_nothing_to_run_is_green_only_where_nothing_changed(checkout: Path) -> None:
    assert "nothing changed since HEAD" in collected(checkout, "--changed=HEAD").output
    append(checkout / "LICENSE", "\n")
    output = collected(checkout, "--changed", status=5).output
    assert "LICENSE" in output
    assert "concerns no suite" in output
    assert "nowhere is no commit" in collected(checkout, "--changed=nowhere", status=4).output
