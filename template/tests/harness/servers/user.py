"""As whom the programs of Postgres run: they refuse root, and `initdb` a user without a name.

Root, with its usual rights, runs them as `nobody`. Where it lacks these, as in many containers, and
where a user has no entry in /etc/passwd, they run in a user namespace of their own, without any
mapping: what is inside is called `nobody` there, while files stay the caller's.
"""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import ANOTHER_SERVER, HarnessError

# CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID: to become another user, and to go on owning
# what that one makes.
_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 5, 6, 7))

_NAMESPACE = Path(__file__).with_name("namespace.py")


@functools.cache
def may_become_another() -> bool:
    """Whether we are root, and may act as `nobody`. Whoever is not root need not."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return True
    return _has_capabilities() and _nobody() is not None


def _has_capabilities() -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # nothing tells
        return True
    effective = status.partition("CapEff:")[2].split()[0]
    return int(effective, 16) & _CAPABILITIES == _CAPABILITIES


def _nobody() -> tuple[int, int] | None:
    """The user and the group of `nobody`, where they exist in this namespace."""
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return None
    there = _is_mapped(nobody.pw_uid, "uid_map") and _is_mapped(nobody.pw_gid, "gid_map")
    return (nobody.pw_uid, nobody.pw_gid) if there else None


def _is_mapped(number: int, kind: str) -> bool:
    try:
        lines = Path("/proc/self", kind).read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return True
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= number < first + count for first, _, count in ranges)


def arguments() -> dict[str, Any]:
    """Arguments for `subprocess`: the user who may run Postgres."""
    nobody = _nobody() if os.geteuid() == 0 and may_become_another() else None
    if nobody is None:
        return {}
    return {"user": nobody[0], "group": nobody[1], "extra_groups": []}


def can_enter(folder: Path) -> bool:
    """Whether the user who runs Postgres gets to a folder of ours: those around it are as they are."""
    return not arguments() or all(p.stat().st_mode & 0o001 for p in folder.parents if p.exists())


def command(*words: str | Path, named: bool = False) -> list[str | Path]:
    """The command that runs a program of Postgres, to be called with `arguments()`.

    Args:
        words: the program and its arguments.
        named: it asks for the user's name.

    Raises:
        HarnessError: nobody whom Postgres accepts can run it here.
    """
    if may_become_another() and not (named and _is_nameless(os.geteuid())):
        return [*words]
    _check_namespace()
    return [sys.executable, "-I", "-S", _NAMESPACE, *words]


def give(path: Path | int) -> None:
    """Let a file or folder, or an open file, belong to the user who runs Postgres."""
    if "user" in (whom := arguments()):
        os.chown(path, whom["user"], whom["group"])


def give_all(folder: Path) -> None:
    """The same for a folder with all that is in it, unless it belongs to that user already."""
    whom = arguments().get("user")
    if whom is not None and folder.stat().st_uid != whom:
        for path in (*folder.rglob("*"), folder):  # the folder last, should this be interrupted
            os.chown(path, whom, arguments()["group"], follow_symlinks=False)


def _is_nameless(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return True
    return False


@functools.cache
def _check_namespace() -> None:
    tried = subprocess.run(
        [sys.executable, "-I", "-S", _NAMESPACE], capture_output=True, encoding="utf-8", check=False
    )
    inside = int(tried.stdout) if tried.returncode == 0 else None
    if inside is not None and not _is_nameless(inside):
        return
    why = (
        tried.stderr.strip()
        if inside is None
        else f"the user {inside} of such a namespace has no entry in /etc/passwd, either"
    )
    who = (
        "root without the rights to become another user (CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID and SETUID), "
        "and Postgres refuses root"
        if os.geteuid() == 0
        else f"the user {os.geteuid()}, who has no entry in /etc/passwd, and Postgres' initdb needs one"
    )
    raise HarnessError(
        f"This process is {who}; nor can it run in a user namespace here: {why}. "
        f"Run as an ordinary user with an entry in /etc/passwd, or {ANOTHER_SERVER}."
    )
