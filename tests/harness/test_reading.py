"""Commands of pytest that only show something: they start nothing."""

from __future__ import annotations

import pytest

from tests.support.machine import linux_only, started_with
from tests.support.project import counted
from tests.support.small import Small
from tests.support.tiers import first

CONCERNS = ["*/harness/plugin.py", "*/harness/markers.py"]

READING = [
    *("--fixtures", "--fixtures-per-test", "--setup-plan", "--setup-only", "--collect-only"),
    *("--markers", "--help", "--version", "--cache-show"),
]


@linux_only
def test_each_starts_nothing(small: Small) -> None:
    small.harness("clean")
    for option in READING:
        run = [str(small.python), "-m", "pytest", option]
        output = small.run(*run, env={"META_TEST_MARK": small.mark}).output
        assert "golden: " not in output, option
        assert "passed" not in counted(output), option
        assert not small.home.exists(), option
        assert not started_with(small.mark), option


@linux_only
def test_shown_set_up_runs_the_tests(small: Small) -> None:
    """Or the test above would show that nothing ever starts."""
    assert "golden: " in small.green("--setup-show").output


@pytest.mark.parametrize(
    "every_file", first(1, [["--doctest-modules"], ["-o", "python_files=*.py"]])
)
def test_files_of_the_harness_are_no_tests(every_file: list[str], small: Small) -> None:
    """To import one that runs elsewhere ended the run."""
    run = [str(small.python), "-m", "pytest", "--no-cov", "-q", "--collect-only", *every_file]
    output = small.run(*run).output
    assert "tests collected" in output
    assert "tests/harness" not in output
