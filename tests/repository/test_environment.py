"""However the meta-tests are started, what they start finds the same."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.machine import MARK, linux_only, new_mark, started_with
from tests.support.postgres import reserved_port
from tests.support.template import ROOT

CONCERNS = [
    "tests/conftest.py",
    "tests/support/environment.py",
    "tests/support/machine.py",
    "tests/support/postgres.py",
]

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


def test_what_make_was_given_is_not_given_to_others(tmp_path: Path) -> None:
    """`make test ARGS=…`, whose tests run `make`."""
    told = "from tests.support.environment import foreign; print(*foreign())"
    (tmp_path / "Makefile").write_text(f"test:\n\t@'{sys.executable}' -c '{told}'\n")
    given = ["ARGS=-k 'a=b or c' DEST=x", "ANSWERS=-d ci=none"]
    make = ("make", "-s", "-f", tmp_path / "Makefile")
    names = run(*make, *given, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}).output.split()
    assert {"ANSWERS", "ARGS", "MAKEFLAGS", "PYTHONPATH"} <= set(names)
    assert not {"DEST", "PATH"} & set(names)


@linux_only
def test_processes_are_found_whatever_others_are_called(tmp_path: Path) -> None:
    """Linux cuts a name at 15 bytes, in the midst of a character if there is one."""
    cat = shutil.which("cat")
    assert cat
    odd = tmp_path / f"{'x' * 14}é"
    shutil.copy2(cat, odd)
    mark = new_mark()
    with subprocess.Popen([odd], stdin=subprocess.PIPE, env={MARK: mark}) as process:
        assert started_with(mark) == {process.pid: str(odd)}


@linux_only
def test_reserved_port_is_given_to_nobody_else() -> None:
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()
