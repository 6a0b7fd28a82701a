"""FAULTS 26: users, homes and paths of all kinds."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.support.embedded import remove_clusters
from tests.support.machine import kill, linux_only, started_with
from tests.support.small import SEEDER, Small, replace

pytestmark = linux_only
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

ODD = 'it\'s a "place" with spaces, $HOME, 100 % ünïcödé & 東京'


def hidden(path: Path, uid: int) -> Path | None:
    """The first folder on the way to a path that another user can't enter."""
    for folder in reversed(path.parents):
        status = folder.stat()
        if not status.st_mode & (0o100 if status.st_uid == uid else 0o001):
            return folder
    return None


def seen_by(uid: int, *paths: Path) -> str:
    """A script that lets a user see paths to which the folders on the way are closed.

    It runs in a mount namespace of its own: nothing changes outside.
    """
    lines = ["set -e", "mount -t tmpfs none /mnt"]
    closed: dict[Path, list[Path]] = {}
    for path in paths:
        if folder := hidden(path, uid):
            closed.setdefault(folder, []).append(path)
    for number, (folder, inner) in enumerate(closed.items()):
        lines += [
            f"mkdir /mnt/{number}",
            f"mount --bind {shlex.quote(str(folder))} /mnt/{number}",
            f"mount -t tmpfs -o mode=755 none {shlex.quote(str(folder))}",
        ]
        for path in inner:
            quoted, relative = shlex.quote(str(path)), shlex.quote(str(path.relative_to(folder)))
            lines += [f"mkdir -p {quoted}", f"mount --bind /mnt/{number}/{relative} {quoted}"]
    return "\n".join(lines)


@contextmanager
def ordinary(
    small: Small,
    script: str = ":",
    *,
    read_only: bool = False,
    uid: int | None = None,
    variables: Mapping[str, str | None] = MappingProxyType({}),
) -> Iterator[tuple[Small, Path]]:
    """A copy of the service that an ordinary user runs, and that user's home: closed to others."""
    user = pwd.getpwnam("nobody").pw_uid if uid is None else uid
    place = Path(tempfile.mkdtemp(prefix="meta-places-", dir="/tmp"))
    place.chmod(0o755)
    home = place / "home"
    home.mkdir(mode=0o700)
    shutil.copytree(small.path, place / "service")
    theirs = [] if read_only else [place / "service", *(place / "service").rglob("*")]
    for path in (home, *theirs):
        os.chown(path, user, user)
    base = Path(os.path.realpath(small.python)).parents[1]
    lines = [seen_by(user, small.python.parents[1], base), script]
    drop = f'exec setpriv --reuid={user} --regid={user} --clear-groups -- "$@"'
    service = changed(
        small,
        path=place / "service",
        prefix=("unshare", "--mount", "sh", "-c", "\n".join([*lines, drop]), "sh"),
        variables={
            "HOME": str(home),
            "XDG_CACHE_HOME": None,
            "TMPDIR": None,
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        },
    )
    try:
        yield service, home
        assert not started_with(small.mark)
    finally:
        kill(started_with(small.mark))
        remove_clusters(place)
        shutil.rmtree(place)


NO_MEMORY = "mount -t tmpfs -o size=64m,mode=1777 none /dev/shm"


@root_only
def test_ordinary_user(small: Small, complete: Any) -> None:
    with ordinary(small) as (service, _):
        service.healed(complete)
        service.healed(complete, says="reused")
        assert service.home.is_relative_to("/dev/shm")


@root_only
@pytest.mark.slow
def test_cache_folder_with_an_odd_name(small: Small, complete: Any) -> None:
    """Where there is no memory to use."""
    with ordinary(small, NO_MEMORY) as (service, home):
        service.variables["XDG_CACHE_HOME"] = str(home / "c 'a' \"ü\"")
        service.healed(complete)
        assert service.home.is_relative_to(home)


@root_only
@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"HOME": None}, {"HOME": "/nonexistent"}, {}], ids=str)
def test_without_a_home(variables: dict[str, str | None], small: Small, complete: Any) -> None:
    with ordinary(small, NO_MEMORY, variables=variables) as (service, home):
        service.healed(complete)
        assert service.home.is_relative_to(home if not variables else "/tmp")


@root_only
@pytest.mark.slow
def test_read_only_sources(small: Small, complete: Any) -> None:
    with ordinary(small, read_only=True) as (service, home):
        replace(service.path / "app/seed_database.py", SEEDER, "")  # keeps its log there
        covered = service.green("--cov=app", COVERAGE_FILE=str(home / "coverage"))
        assert "TOTAL" in covered.output
        service.healed(complete)


@root_only
def test_user_without_a_name(small: Small, complete: Any) -> None:
    """Postgres' initdb wants to know who runs it."""
    with ordinary(small, uid=54321) as (service, _):
        service.healed(complete)
        service.healed(complete, says="reused")


def test_odd_and_long_path(small: Small, complete: Any) -> None:
    path = small.path.parent / ODD / ("long " * 30)
    shutil.copytree(small.path, path)
    service = changed(small, path=path)
    service.edit_seeder()
    try:
        service.healed(complete)
        assert str(path) in service.harness("status")
        service.harness("clean")
        assert not service.home.exists()
    finally:
        remove_clusters(path)
        shutil.rmtree(path)
