"""An environment in which the developer's own settings can't change what a test sees."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

from tests.support.command import run

GIT_CONFIG = """\
[user]
    name = Meta Tests
    email = meta-tests@template.example
[init]
    defaultBranch = main
[commit]
    gpgSign = false
[tag]
    gpgSign = false
[core]
    autocrlf = false
[safe]
    directory = *
"""

# What a shell, an editor, a git hook, make or an outer pytest sets, and a render must not see.
FOREIGN_PREFIXES = ("GIT_", "COV_CORE_", "PYTEST_XDIST_", "MAKE", "UV_PROJECT", "UV_RUN_")
FOREIGN_NAMES = {
    "BUILD_NUMBER",  # by this and by CI, pytest decides to print each failure a second time
    "CI",
    "DATABASE_URL",
    "ENVIRONMENT",
    "JWT_SECRET",
    "MFLAGS",
    "MYPY_CACHE_DIR",
    "PYTEST_ADDOPTS",
    "PYTEST_DEBUG_TEMPROOT",
    "PYTEST_PLUGINS",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPATH",
    "REDIS_URL",
    "RUFF_CACHE_DIR",
    "TEST_DATABASE_URL",
    "TEST_REDIS_URL",
    "UV_PYTHON",
    "VIRTUAL_ENV",
}

PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}
"""Signals that Python ignores itself, and `subprocess` restores."""


def find_uv() -> str:
    """The uv that runs these tests, or that lies beside their Python, or on PATH."""
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    found = os.environ.get("UV") or beside or shutil.which("uv")
    assert found, "the template's tests need uv: run them with `make test`"
    return found


def hermetic_environment(home: Path) -> dict[str, str | None]:
    """The changes to this process's environment that keep the developer's settings out.

    Writes the settings files into `home`. Package caches stay the user's: filling new ones would
    cost minutes, and they hold nothing that changes a result. HOME stays too, for the settings by
    which uv and pip find a private package index.
    """
    home.mkdir(parents=True, exist_ok=True)
    uv = find_uv()
    copier_settings = home / "copier-settings.yml"
    copier_settings.write_text("{}\n")
    git_config = home / "gitconfig"
    git_config.write_text(GIT_CONFIG)
    return {
        **dict.fromkeys(foreign()),
        "UV": uv,
        "UV_CACHE_DIR": run(uv, "cache", "dir", cwd=home).output.strip(),
        "PIP_CACHE_DIR": _pip_cache(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "COPIER_SETTINGS_PATH": str(copier_settings),
        "GIT_CONFIG_GLOBAL": str(git_config),
        "GIT_CONFIG_NOSYSTEM": "1",
        # One environment serves all variants: plugins of one make the runs of each begin late.
        "PYTEST_ADDOPTS": "-p no:langsmith_plugin -p no:valkey",
        "NO_COLOR": "1",
        "FORCE_COLOR": None,
        "LC_ALL": "C.UTF-8",
    }


def let_children_hear() -> None:
    """Let each signal reach the processes that tests start, however this one was started.

    A shell without job control lets its background jobs ignore SIGINT and SIGQUIT, `nohup` lets a
    command ignore SIGHUP. A program that is executed inherits what is ignored, but not what is
    handled: so this process takes no notice of these signals, as it was told, and its children do.
    """
    for number in signal.valid_signals() - PYTHONS_OWN:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def foreign() -> set[str]:
    """The variables of this process that a render must not see.

    What make is given on its command line, such as ARGS, it exports: another make would take it
    for its own. The words of MAKEFLAGS say what that was; a blank within one has a backslash.
    """
    _, _, given = os.environ.get("MAKEFLAGS", "").partition("-- ")
    of_make = re.findall(r"(?<!\S)(?<!\\ )(\w+)=", given)
    return {
        name
        for name in os.environ
        if name in FOREIGN_NAMES or name in of_make or name.startswith(FOREIGN_PREFIXES)
    }


def _pip_cache(home: Path) -> str:
    cache = os.environ.get("PIP_CACHE_DIR")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = str(Path(base) / "pip")
    return cache
