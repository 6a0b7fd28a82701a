"""However the meta-tests are started, what they start finds the same."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.environment import hermetic_environment
from tests.support.machine import linux_only
from tests.support.template import ROOT

CONCERNS = ["tests/support/environment.py", "tests/conftest.py"]

LOOK = """\
import subprocess
from tests.support.environment import let_children_hear

look = ["grep", "SigIgn", "/proc/self/status"]
subprocess.run(look, check=True)
let_children_hear()
subprocess.run(look, check=True)
"""

# How a shell or a user starts a run, and the signals that it then ignores.
WAYS = {
    "a script's background": ('"$@" & wait', {2, 3}),
    "nohup": ('nohup "$@"', {1}),
    "nohup, a script's background": ('nohup "$@" & wait', {1, 2, 3}),
    "ignored by hand": ("""trap "" TERM TSTP TTIN TTOU PIPE USR1; "$@" """, {15, 20, 21, 22, 10}),
    "a session of its own": ('setsid --wait "$@"', set()),
}


@linux_only
@pytest.mark.parametrize("way", WAYS)
def test_children_hear_each_signal(way: str) -> None:
    script, ignored = WAYS[way]
    output = run("sh", "-c", script, "sh", sys.executable, "-c", LOOK, cwd=ROOT).output
    before, after = (
        {number for number in signal.valid_signals() if int(mask, 16) >> number - 1 & 1}
        for mask in re.findall(r"^SigIgn:\t(\w+)$", output, re.M)
    )
    assert before == ignored
    assert not after


def test_what_make_is_told_reaches_no_make_of_a_render(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `make test ARGS="-k development"` would tell each `make run`."""
    rules = (ROOT / "template/Makefile.jinja").read_text()
    set_there = re.findall(r"^(?:define )?([A-Z]+)\b", rules, re.M)
    told = {*re.findall(r"\$\((?:if \$\()?([A-Z]+)\)", rules)} - {*set_there}
    assert told >= {"ARGS", "FORCE"}
    for name in told:
        monkeypatch.setenv(name, "of the outer make")
    changes = hermetic_environment(tmp_path)
    assert {name for name in told if changes.get(name, "") is not None} == set()
