"""The rendered service's own tests, run for real on the servers that come from wheels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.harness.shells import counting, set_up_for_other_things
from tests.support.machine import MARK, new_mark, started_with
from tests.support.once import made_once
from tests.support.project import Project, install
from tests.support.tiers import quick, slow
from tests.variants import MIGRATIONS, ONE_FILE, VARIANTS

CONCERNS = [
    "template/{{ package_name }}/*",
    "template/tests/*.jinja",
    "template/migrations/*",
    "template/*knowledge*",
    "template/*ingest.py*",
]

# Coverage doubles a run's time.
COVERED = "all off"
# With all features and with none, then those between.
ENDS = ("defaults", COVERED)
BETWEEN = [name for name in VARIANTS if name not in ENDS]
CASES = [*quick("defaults", of=ENDS), *quick(of=BETWEEN, others=slow)]

# Options of a second run, and how many tests it passes. At random, by two workers: see
# test_leftovers.py.
SHORT = VARIANTS["all off"]
RUNS = {
    "in order": (["-p", "no:randomly"], SHORT.passed),
    "one file": (ONE_FILE[0], 92),
}


LOOP = """\
import asyncio

import uvloop


async def test_loop():
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
"""

# Whoever reads or writes text names its encoding, or Python warns, and warnings are errors.
NAMED_ENCODINGS = {"PYTHONWARNDEFAULTENCODING": "1"}

# Tests read these of the shell: where the service's own data are, so that nobody touches them, and
# the model to ask.
READ_OF_THE_SHELL = {"database_url", "redis_url", "llm_model"}


def nonsense(service: Project) -> dict[str, str]:
    """A value that none takes for each of a service's settings."""
    text = (service.package / "config.py").read_text()
    fields = {*re.findall(r"^    (\w+): ", text, re.MULTILINE)} - READ_OF_THE_SHELL
    assert len(fields) > 10
    return {field.upper(): "nonsense" for field in fields}


@pytest.mark.parametrize("name", CASES)
def test_suite_is_green(name: str, rendered: Render, tmp_path: Path) -> None:
    """In an environment that holds what the variant itself depends on, and nothing else.

    In a shell that is set up for other things, all of which name one listener: nobody comes there.
    And in which each setting of the service is nonsense.
    """
    variant = VARIANTS[name]
    service = install(rendered(**variant.answers), tmp_path / "environment")
    options = [] if name == COVERED else ["--no-cov"]
    counts = {"passed": variant.passed, "skipped": variant.skipped}
    mark = new_mark()
    with counting() as (port, came):
        env = {**set_up_for_other_things(port), **nonsense(service), **NAMED_ENCODINGS, MARK: mark}
        run = service.pytest(*options, env=env, timeout=600, **counts)
        assert not came
    assert not started_with(mark), "nothing goes on to run"
    assert len(re.findall(r"test_migrations\.py::\w+ PASSED", run.output)) == MIGRATIONS
    assert ("TOTAL" in run.output) == (name == COVERED)
    assert "Required test coverage" not in run.output, "a gate would fail runs of one file"


@pytest.mark.thorough
def test_shell_that_asks_for_another_way_to_measure(project: Project) -> None:
    """Of coverage, which warns where it can't."""
    measured = project.tool(
        "pytest", "tests/unit/test_pagination.py", env={"COVERAGE_CORE": "sysmon"}
    )
    assert "TOTAL" in measured.output


@pytest.mark.slow
def test_suite_is_green_whatever_a_developer_has_set(project: Project) -> None:
    """In `.env`: all that `.env.example` shows, switched on, and each setting as nonsense."""
    shown = (project.path / ".env.example").read_text()
    shown = re.sub(r"^# (?=[A-Z_]+=)", "", shown, flags=re.MULTILINE)
    odd = [f"{name}={value}\n" for name, value in nonsense(project).items()]
    (project.path / ".env").write_text(shown + "".join(odd))
    variant = VARIANTS["defaults"]
    project.pytest("--no-cov", passed=variant.passed, skipped=variant.skipped)


@pytest.mark.slow
def test_suite_is_green_on_the_loop_that_serves(rendered: Render, tmp_path: Path) -> None:
    """As docs/testing.md says."""
    project = rendered(**SHORT.answers).copy_to(tmp_path / "service")
    (said,) = re.findall(
        r"^```python\n(def pytest_asyncio_loop_factories.*?)^```",
        (project.path / "docs/testing.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    with (project.path / "tests/conftest.py").open("a") as conftest:
        conftest.write(f"\n\n{said}")
    (project.path / "tests/unit/test_loop.py").write_text(LOOP)
    project.pytest("--no-cov", passed=SHORT.passed + 1)


@pytest.mark.thorough
@pytest.mark.parametrize("name", quick("one file", of=RUNS, others=slow))
def test_second_run_reuses_the_golden_database(name: str, warm: Project) -> None:
    options, passed = RUNS[name]
    run = warm.pytest("--no-cov", *options, passed=passed)
    assert run.golden()[1] == "reused"


@pytest.fixture
def warm(rendered: Render, shared: Path) -> Project:
    """A shared project, once its tests have run."""
    project = rendered(**SHORT.answers)
    options, passed = RUNS["one file"]
    made_once(shared / "warm", lambda _: project.pytest("--no-cov", *options, passed=passed))
    return project
