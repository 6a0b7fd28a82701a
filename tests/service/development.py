"""`make run` in a rendered service, and what it tells."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.command import Finished, overlaid, run
from tests.support.machine import MARK, kill, new_mark, started_with
from tests.support.project import Project
from tests.support.running import Client

READY_SECONDS = 90  # of a machine that does much else

# Nothing here is about limits of calls, and the hashes guard nothing.
CHEAP = {"LOGIN_RATE_LIMIT": "1000000", "ARGON2_TIME_COST": "1", "ARGON2_MEMORY_KIB": "32"}

CONNECT = """\
import json, sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    cursor = connection.execute(sys.argv[2])
    print(json.dumps(cursor.fetchall() if cursor.description else []))
"""

CALL_REDIS = """\
import sys, redis
print(getattr(redis.Redis.from_url(sys.argv[1]), sys.argv[2])(*sys.argv[3:]))
"""


@dataclass(frozen=True)
class Desk:
    """A project of a test's own in which `make run` is called.

    Its environment is the one that all meta-tests share, so that nothing is installed.
    """

    path: Path
    project: Project
    mark: str = field(default_factory=new_mark)
    prefix: tuple[str, ...] = ()
    variables: Mapping[str, str | None] = field(default_factory=dict)

    @cached_property
    def env(self) -> dict[str, str | None]:
        return {
            **CHEAP,
            "PATH": f"{Path(os.environ['UV']).parent}:{os.environ['PATH']}",
            "UV_PROJECT_ENVIRONMENT": str(self.project.python.parents[1]),
            "UV_NO_SYNC": "1",
            MARK: self.mark,
            **self.variables,
        }

    def make(
        self, *words: str, status: int = 0, env: Mapping[str, str | None] | None = None
    ) -> Finished:
        """Call `make`, and wait for its end."""
        command = [*self.prefix, "make", "-s", *words]
        return run(*command, cwd=self.path, env={**self.env, **(env or {})}, status=status)

    def refused(self, **env: str | None) -> str:
        """What `make run` says that does not start. Nothing may run or be locked then."""
        said = self.make("run", status=2, env=env).output
        self.assert_nothing_left()
        return "\n".join(line for line in said.splitlines() if not line.startswith("make: "))

    def sql(self, statement: str) -> list[str]:
        """Rows, by `make psql`."""
        return self.make("psql", f'ARGS=-XAtc "{statement}"').output.splitlines()

    @contextmanager
    def running(self, options: str = "", **variables: str | None) -> Iterator[Running]:
        """`make run`, ready; killed at the end, with all that it started, unless that was ended."""
        running = self.start(options, **variables)
        try:
            running.wait_until_ready()
            yield running
        finally:
            running.kill_everything()
            print(running.output())

    def start(self, options: str = "", **variables: str | None) -> Running:
        """Start `make run` as a shell does: in a process group of its own."""
        log = self.path.with_name(f"{self.path.name}-{time.monotonic_ns()}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.prefix, "make", "-s", "run", *([f"ARGS={options}"] if options else [])],
                cwd=self.path,
                env=overlaid({**self.env, **variables}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return Running("", desk=self, process=process, log=log)

    def assert_nothing_left(self) -> None:
        """No process, socket, lock or note of one."""
        assert not started_with(self.mark), started_with(self.mark)
        kept = self.path / ".dev"
        allowed = {"env", "secrets.json", "postgres", "valkey", "jwt-secret", "mail"}
        assert {path.name for path in kept.glob("*")} <= allowed
        inner = {path.name for path in kept.glob("postgres/*")}
        inner |= {path.name for path in kept.glob("valkey/*")}
        assert inner <= {"data", "log", "appendonlydir"}, inner
        assert not (kept / "postgres/data/postmaster.pid").exists()
        assert not any(path.is_socket() for path in kept.rglob("*"))


@dataclass
class Running(Client):
    """A client of the service that `make run` runs, and its process."""

    desk: Desk = field(kw_only=True)
    process: subprocess.Popen[bytes] = field(kw_only=True)
    log: Path = field(kw_only=True)

    def output(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait for the last line of what it tells."""
        begun = time.monotonic()
        while "\ndata " not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() - begun < READY_SECONDS, self.output()
            time.sleep(0.01)
        print(f"ready in {time.monotonic() - begun:.2f} s")
        self.base = self.said("service")

    def said(self, what: str) -> str:
        """The line that begins with a word, without it."""
        found = re.search(rf"^{what} {{3,}}(.*)$", self.output(), re.MULTILINE)
        assert found, f"no line on {what}:\n{self.output()}"
        return found[1]

    @property
    def url(self) -> str:
        """The database's, for psql and editors."""
        return self.said("psql").rpartition(" ")[2]

    def port(self) -> int:
        """The database's."""
        return int(re.findall(r":(\d+)/", self.url)[0])

    def ports(self) -> set[int]:
        """Both servers'."""
        return {int(found) for found in re.findall(r":(\d+)/", self.said("redis") + self.url)}

    def sql(self, statement: str) -> list[list[Any]]:
        """Rows, by the URL that it tells."""
        python = self.desk.project.python
        done = run(python, "-c", CONNECT, self.url, statement, cwd=self.desk.path)
        rows: list[list[Any]] = json.loads(done.output)
        return rows

    def redis(self, *words: str) -> str:
        """What a method of a client of the Redis that it tells returns."""
        python = self.desk.project.python
        url = self.said("redis")
        return run(python, "-c", CALL_REDIS, url, *words, cwd=self.desk.path).output.strip()

    def log_in(self, kind: str) -> Client:
        """A client that has logged in as it says that one can."""
        (found,) = re.findall(
            rf"^log in +(\S+) \({kind}\), password (\S+)$", self.output(), re.MULTILINE
        )
        form = {"username": found[0], "password": found[1]}
        status, token = self.call("POST", "/api/v1/auth/token", form=form)
        assert status == 200, token
        return Client(self.base, {"Authorization": f"Bearer {token['access_token']}"})

    def interrupt(self) -> None:
        """Ctrl-C: to the whole process group, and to nothing else."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(timeout=60)

    def kill_group(self) -> None:
        """`kill -9` of the whole process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=60)

    def kill_everything(self) -> None:
        """The servers, too."""
        while processes := started_with(self.desk.mark):
            kill(processes)
            time.sleep(0.05)
        self.process.wait(timeout=60)
