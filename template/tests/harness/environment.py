"""Who this process is, where its servers are, and the environment that the service sees.

`prepare()` runs before anything of the service is imported, from `tests/__init__.py` or at the top of
the first conftest.py, so that settings and engines made at import time already point at the tests'
database. It starts nothing, and imports no driver: a run of unit tests does without.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from . import shell
from .checks import versions
from .errors import HarnessError
from .files import private
from .layout import ROOT
from .servers import loopback, processes, urls, user
from .servers.loopback import Loopback

APPLICATION = "tests.harness"
"""How the harness's own connections begin to name themselves."""

PORT = 5432
"""Names the embedded server's socket file where nothing listens on a network port."""

_MEMORY = Path("/dev/shm")
_MEMORY_FREE = 512 * 1024 * 1024
_LIMITS = {
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "120s",
}
"""No test waits for ever."""

_SOCKET_PATH_MAX = 100  # Linux allows 107 bytes, macOS 103
_FIRST_NAMESPACE = "4026531836"  # of processes: the number is fixed in the kernel

_ASYNCPG = "postgresql+asyncpg"
_URL = re.compile(
    r"[^:/]+://(?P<at>(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<host>\[[^\]]*\]|[^:/?#]*)(?::(?P<port>\d*))?)(?:/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_REDIS_URL = re.compile(r"^(rediss?://[^/?#]*)/?([0-9]*)")


class _Server(NamedTuple):
    host: str
    port: str
    user: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The variables of the parts from which a service puts the URL of its database together.

    Names as pydantic-settings reads them, nested ones among them: `DB__HOST`, `POSTGRES_SERVER`.

    Attributes:
        host: the variable of the server's host.
        port: of its port.
        user: of the role.
        name: of the database's name.
        password: of the role's password. A service that has none finds it as libpq and asyncpg do.
    """

    host: str
    port: str
    user: str
    name: str
    password: str | None = None

    def values(self, server: _Server, database: str) -> dict[str, str]:
        """What leads to a database of a server."""
        found = {
            self.host: server.host,
            self.port: server.port,
            self.user: server.user,
            self.name: database,
        }
        if self.password or server.password:
            found[self.password or "PGPASSWORD"] = server.password
        return found

    def own(self) -> dict[str, str]:
        """The URL of the application's own database, by the variables that name it; empty without a host."""
        host, port, user, name = map(_own, (self.host, self.port, self.user, self.name))
        if not host:
            return {}
        # A socket is on this machine, as is what has no host; no more is asked of it.
        at = "" if host.startswith("/") else f"[{host}]" if ":" in host else host
        url = f"postgresql://{quote(user or '')}@{at}:{port or PORT}/{quote(name or '')}"
        return {f"{self.host} and {self.name}": url}


@dataclass(frozen=True)
class Environment:
    """What is fixed from the first import to the end of the process.

    Its representation, which pytest shows with a traceback, holds no password.

    Attributes:
        run: eight hex digits, shared by the workers of one run.
        worker: `main`, or pytest-xdist's `gw0`, `gw1`, …
        home: folder of the embedded servers of this project; made when first needed.
        external_url: `TEST_DATABASE_URL`, or None for the embedded server.
        external_redis_url: `TEST_REDIS_URL`, or None for the embedded server.
        application_urls: of the databases that the service would have used, by the variables that name them.
        application_redis_url: the same for Redis.
        redis: the variable that gives the service its Redis, if it has one.
        drivers: the variables that give the service its database URL, and how each begins.
        parts: the variables of its parts, if there are such.
        port: of the embedded server; it names the file of its socket as well.
        loopback: where the service reaches it, if not by its socket.
        limits: what Postgres allows the sessions of tests; none for a debugger.
    """

    run: str
    worker: str
    home: Path
    external_url: str | None = field(repr=False)
    external_redis_url: str | None = field(repr=False)
    application_urls: Mapping[str, str] = field(repr=False)
    application_redis_url: str | None = field(repr=False)
    redis: str | None
    drivers: Mapping[str, str]
    parts: Parts | None
    port: int
    loopback: Loopback | None
    limits: dict[str, str]

    @property
    def database(self) -> str:
        """The worker's database. Always this name: what is behind it is replaced when dirty."""
        return f"app_w_{self.run}_{self.worker}"

    @property
    def application_name(self) -> str:
        """Of the harness's own connections, in this process."""
        return f"{APPLICATION} {self.run} {self.worker}"

    @property
    def driver(self) -> str:
        """How a URL of the service begins; the first of them, where there are several."""
        return next(iter(self.drivers.values()), _ASYNCPG)

    def url(self, database: str, driver: str | None = None) -> str:
        """The URL of a database on the tests' server, as the service gets it.

        Args:
            database: its name.
            driver: how the URL begins, if not as the service's own: `postgresql`, `postgresql+psycopg`, …
        """
        driver = driver or self.driver
        if self.external_url is None and self.loopback is not None:
            at = f"postgres:{self.loopback.password}@{loopback.HOST}:{self.loopback.port}"
            return f"{driver}://{at}/{quote(database)}"
        if self.external_url is None:
            host = quote(str(self.home / "socket"))
            return f"{driver}://postgres@/{quote(database)}?host={host}&port={self.port}"
        found = _URL.match(self.external_url)
        if found is None:  # the guard refuses it
            return self.external_url
        translate = urls.for_asyncpg if driver.endswith("asyncpg") else urls.for_libpq
        query, at, host = translate(found["query"] or ""), found["at"], found["host"]
        if host.lower().startswith("%2f"):  # a socket's folder, which SQLAlchemy takes in the query
            at = at[: found.start("host") - found.start("at")]
            query = "&".join(filter(None, (f"host={host}&port={found['port'] or PORT}", query)))
        return f"{driver}://{at}/{quote(database)}{query and '?'}{query}"

    def conninfo(self, database: str) -> str:
        """How the harness itself, and psql, get there: to the embedded server by its socket."""
        return replace(self, loopback=None).url(database, "postgresql")

    def variables(self, database: str) -> dict[str, str]:
        """What leads the service to a database of the tests' server: its variables, and their values."""
        found = {name: self.url(database, driver) for name, driver in self.drivers.items()}
        if self.parts is not None:
            found |= self.parts.values(self._server(), database)
        return found

    def _server(self) -> _Server:
        """The tests' server, in parts."""
        if self.external_url is None:
            assert self.loopback is not None  # whoever asks for parts asks for it
            return _Server(
                loopback.HOST, str(self.loopback.port), "postgres", self.loopback.password
            )
        found = _URL.match(self.external_url)
        if found is None:  # the guard refuses it
            return _Server("", "", "", "")
        query = dict(parse_qsl(found["query"] or ""))
        host, port, user, password = (unquote(found[n] or "") for n in _Server._fields)
        return _Server(
            host.strip("[]") or query.get("host", "localhost"),
            port or query.get("port", str(PORT)),
            user or os.environ.get("PGUSER") or getpass.getuser(),
            password,
        )

    @property
    def redis_socket(self) -> Path:
        """Where the worker's embedded Valkey listens."""
        return self.home / "valkey" / f"{self.run}-{self.worker}.sock"

    @property
    def redis_url(self) -> str:
        """The URL of the worker's Redis. Never database 0 of a server that others use."""
        if self.external_redis_url is None:
            return f"unix://{quote(str(self.redis_socket))}?db=1"
        url, _, query = self.external_redis_url.partition("?")
        if url.startswith("unix:"):
            parameters = dict(parse_qsl(query))
            parameters["db"] = self._redis_number(parameters.get("db"))
            query = urlencode(parameters)
        url = _REDIS_URL.sub(lambda found: f"{found[1]}/{self._redis_number(found[2])}", url)
        return f"{url}?{query}" if query else url

    def _redis_number(self, first: str | None) -> str:
        worker = int(self.worker.removeprefix("gw")) if self.worker != "main" else 0
        return str(max(1, int(first) if first and first.isdecimal() else 0) + worker)


of_the_shell = {**os.environ}
"""The environment as it was before `prepare()`."""

current: Environment
"""Set by `prepare()`."""


def prepare(
    *,
    database_url: str | Mapping[str, str] = "DATABASE_URL",
    database_parts: Parts | None = None,
    database_loopback: bool = False,
    redis_url: str | None = None,
    settings: str | None = None,
    **variables: str,
) -> Environment:
    """Point the service at the tests' servers, before the service is imported.

    Args:
        database_url: the variable from which the service reads its database URL, one for SQLAlchemy with
            asyncpg. Or several, each with how its URL begins: `{"DATABASE_URL": "postgresql+psycopg"}`; or none, `{}`.
        database_parts: the variables of the parts of it, for a service that reads these.
        database_loopback: the embedded server is to be reached on 127.0.0.1, for a service, or a library,
            that takes no URL of a Unix socket. With parts, it is anyway.
        redis_url: the variable for Redis, if the service uses it.
        settings: the module with the service's settings, subclasses of `BaseSettings` without a prefix.
            What the shell says of their fields is not for tests: they see the defaults, and what is named here.
        variables: further environment variables of the service under test.

    Raises:
        HarnessError: there is no place for the tests' server, a URL begins as none of Postgres does, the
            environment takes no such variable, or the service has no such module.
    """
    global current  # noqa: PLW0603 - one process, one environment
    if "pytest" in sys.modules:
        try:
            versions.check_plugins()
        except HarnessError as error:
            sys.exit(str(error))  # pytest would wrap a traceback around it
    _check_variables(database_url, database_parts, redis_url, variables)
    drivers = database_url if isinstance(database_url, Mapping) else {database_url: _ASYNCPG}
    for driver in drivers.values():
        if not urls.SCHEME.fullmatch(str(driver)):
            raise HarnessError(
                f"prepare() was told of URLs that begin with {driver}. Those of Postgres begin with "
                "postgresql, postgres, postgresql+asyncpg, postgresql+psycopg and the like."
            )
    processes.hear_of_children()
    run, worker = _identity()
    home, external_url = _home(), os.environ.get("TEST_DATABASE_URL") or None
    asked = external_url is None and (database_loopback or database_parts is not None)
    if asked:
        there: Loopback | None = loopback.choose(private(home))
    else:  # it listens as it did: others may use it
        there = loopback.known(home)
    current = Environment(
        run=run,
        worker=worker,
        home=home,
        external_url=external_url,
        external_redis_url=os.environ.get("TEST_REDIS_URL") or None,
        application_urls={
            **{name: url for name in drivers if (url := _own(name))},
            **(database_parts.own() if database_parts else {}),
        },
        application_redis_url=_own(redis_url) if redis_url else None,
        redis=redis_url,
        drivers=MappingProxyType({**drivers}),
        parts=database_parts,
        port=there.port if there else PORT,
        loopback=there if asked else None,
        limits={} if _is_debugged() else _LIMITS,
    )
    shell.settle(
        libpq=current.external_url is not None,
        certificates=bool(current.external_url or current.external_redis_url),
    )
    if asked:
        os.environ.update(loopback.WITHOUT_TLS)
    for name in shell.settings_in(settings) if settings is not None else ():
        _unset(name)
    for name, value in current.variables(current.database).items():
        _set(name, value)
    if redis_url:
        _set(redis_url, current.redis_url)
    os.environ.update(variables)
    return current


def _check_variables(
    database_url: str | Mapping[str, str],
    database_parts: Parts | None,
    redis_url: str | None,
    variables: Mapping[str, str],
) -> None:
    if not isinstance(database_parts, Parts | None):
        raise HarnessError(
            f"prepare(database_parts={database_parts!r}): it takes Parts(host=…, …)."
        )
    names = [*database_url] if isinstance(database_url, Mapping) else [database_url]
    if database_parts is not None:
        names += [name for name in vars(database_parts).values() if name is not None]
    if redis_url:
        names.append(redis_url)
    for name in [*names, *variables]:
        if not isinstance(name, str) or not re.fullmatch(r"[^=\0]+", name):
            raise HarnessError(f"prepare() was told of {name!r}, which is no name of a variable.")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise HarnessError(
                f"prepare({name}=…): the value of a variable is a text, not {type(value)}."
            )


def _own(variable: str) -> str | None:
    """The application's own value of a variable: from the environment, `.env` or `make run`."""
    kept = f"HARNESS_APPLICATION_{variable}"  # workers inherit an environment already prepared
    if kept not in os.environ:
        files = (of_file(name) for name in (".dev/env", ".env"))
        sources: list[Mapping[str, str | None]] = [*files, os.environ]
        found = [values[name] for values in sources for name in spellings(variable, values)]
        os.environ[kept] = next((value for value in reversed(found) if value), "")
    return os.environ[kept] or None


def of_file(name: str) -> dict[str, str | None]:
    """What a file of variables in the project's root says; nothing where there is none.

    Raises:
        HarnessError: it is no text.
    """
    from dotenv import dotenv_values

    try:
        return dotenv_values(ROOT / name)
    except UnicodeDecodeError as error:
        raise HarnessError(
            f"{ROOT / name} is not in UTF-8, as the service reads it ({error}). Save it so."
        ) from None


def _set(variable: str, value: str) -> None:
    """Set a variable of the service, in whatever case it was set before."""
    _unset(variable)
    os.environ[variable] = value


def _unset(variable: str) -> None:
    for name in spellings(variable, os.environ):
        del os.environ[name]


def spellings(variable: str, names: Iterable[str]) -> list[str]:
    """Which of these names pydantic-settings takes for a variable, the exact one last."""
    found = [name for name in names if name.upper() == variable.upper()]
    return sorted(found, key=lambda name: name == variable)


def _identity() -> tuple[str, str]:
    """The run's id and the worker's name. Workers of pytest-xdist inherit the id.

    The process that made the id is noted beside it: a pytest started by a test inherits the
    variables too, and must be a run of its own. Any other process that a test starts, and that
    imports something of its tests, belongs to that test.
    """
    run, _, maker = os.environ.get("HARNESS_RUN", "").partition(":")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if run and ((worker and maker == str(os.getppid())) or not _is_pytest()):
        return run, worker or "main"
    run = secrets.token_hex(4)
    os.environ["HARNESS_RUN"] = f"{run}:{os.getpid()}"
    return run, "main"


def _is_pytest() -> bool:
    """Whether this process runs tests. What `multiprocessing` spawns imports the main program anew."""
    processes = sys.modules.get("multiprocessing.process")
    is_spawned = processes and getattr(processes.current_process(), "_inheriting", False)
    return "pytest" in sys.modules and not is_spawned


def _is_debugged() -> bool:
    """Whether a debugger may stop this process for as long as it pleases; of pytest's own, `plugin` knows."""
    if sys.version_info >= (3, 12) and sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID):
        return True
    tracer = sys.gettrace()  # of a debugger, or of what measures coverage
    measures = type(getattr(tracer, "__self__", tracer)).__module__.startswith("coverage")
    return bool(tracer and not measures)


def _home() -> Path:
    """The embedded servers' folder: in memory where there is room, else in the user's cache."""
    key = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:12]
    folders = [base / "-".join((key, *realm())) for base in bases()]
    usable = [
        f for f in folders if len(os.fsencode(f / f"socket/.s.PGSQL.{PORT}")) <= _SOCKET_PATH_MAX
    ]
    if not usable:
        raise HarnessError(
            f"There is no folder for the tests' server: each of {[*map(str, folders)]} can't be written to, or has "
            "a path too long for a socket. Name one that can in TMPDIR, or set TEST_DATABASE_URL."
        )
    for folder in usable:
        if folder.exists():
            return folder
    roomy = [f for f in usable if not f.is_relative_to(_MEMORY) or _has_room(_MEMORY)]
    return (roomy or usable)[0]


def _has_room(folder: Path) -> bool:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize >= _MEMORY_FREE


def bases() -> list[Path]:
    """Folders of this user that may hold clusters, the best first."""
    name = f"pytest-harness-{os.geteuid()}"
    found = [_MEMORY / name] if _MEMORY.is_dir() else []
    # The server of root runs as another user, who can't enter root's home.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.geteuid() != 0 and os.path.isabs(cache):  # "~" stays where there is no home
        found.append(Path(cache) / name)
    with suppress(FileNotFoundError):  # nothing there can be written to
        found.append(Path(tempfile.gettempdir()) / name)
    found.append(Path("/tmp") / name)
    return [base for base in dict.fromkeys(found) if _ours(base) and user.can_enter(base)]


def realm() -> list[str]:
    """What a server's folder is named for besides its project: who can see and stop its processes.

    Containers may share memory and paths, and the end of one ends the processes in it.
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:  # not Linux
        return []
    container = [namespace] if namespace != _FIRST_NAMESPACE else []
    return container if user.may_become_another() else [*container, "own"]


def _ours(base: Path) -> bool:
    """Not somebody else's folder, put where we would look, and none that can't be there."""
    try:
        status = base.lstat()
    except FileNotFoundError:
        return os.access(next(p for p in base.parents if os.path.lexists(p)), os.W_OK)
    except OSError:  # on the way there is a file, or a folder that we can't enter
        return False
    return status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode)
