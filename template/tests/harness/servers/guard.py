"""What is refused before anything is written.

What a URL tells is checked before collection, and connects to nothing. What only the server knows
is checked when a selected test needs it, before anything is written there. The one way around is
`harness_allowed_hosts` in pyproject.toml, which is read from that file: no option and no variable
changes it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from ..environment import PORT, Environment
from ..errors import HarnessError
from ..layout import ROOT
from . import urls
from .binaries import OLDEST

if TYPE_CHECKING:
    from ..golden.databases import Connection

REDIS_PORT = 6379

_HERE = ""
"""The host, by whichever name or address this machine was called."""

# As SQLAlchemy reads it. The drivers do the same, unless a password has one of / ? # in it.
_URL = re.compile(
    r"(?P<scheme>[\w+]+)://(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^@]*))?@)?(?P<hosts>[^/?#@]*)"
    r"(?:/(?P<path>[^?#]*))?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<host>[^:\[]*))(?::(?P<port>\d*))?")
# The folder of a socket in the host's place, where it has to be quoted.
_SOCKET = re.compile(r"(?P<folder>%2f[^:]*)(?::(?P<port>\d*))?")

# Parameters by which one driver or another goes elsewhere than the rest of the URL says.
_ELSEWHERE = {"hostaddr", "service", "servicefile", "dbname", "database", "dsn"}
_REDIS_ELSEWHERE = {"host", "port", "path", "connection_class"}

_INSTEAD = "or unset the variable to use the embedded server"
_EXAMPLE = (
    "It should look like postgresql+asyncpg://user:password@localhost:5432/postgres, with the @ / ? # of a "
    f"password written as %40 %2F %3F %23. Correct it, {_INSTEAD}."
)
_REDIS_EXAMPLE = f"It should look like redis://localhost:6379/1. Correct it, {_INSTEAD}."


@dataclass(frozen=True)
class Address:
    """Where a URL leads.

    Attributes:
        scheme: what stands before `://`.
        servers: host and port of each server that it may lead to.
        database: the name, or the number of Redis.
        parameters: names of those after the question mark.
        clear: whether all drivers read it in the same way.
    """

    scheme: str
    servers: Sequence[tuple[str, int]]
    database: str
    parameters: set[str]
    clear: bool

    def meets(self, other: Address) -> bool:
        """Whether both may lead to the same database."""
        return self.database == other.database and not {*self.servers}.isdisjoint(other.servers)


def check_url(environment: Environment) -> None:
    """Refuse a `TEST_DATABASE_URL` that may not be meant for tests. Connects to nothing.

    Raises:
        HarnessError: it is not the URL of one Postgres database, it is the application's own, or
            its host is neither this machine nor allowed by `harness_allowed_hosts`.
    """
    if environment.external_url is None:
        return
    url = read(environment.external_url)
    # Whichever driver it names: each of the tests' connections puts its own there.
    if url is None or not urls.SCHEME.fullmatch(url.scheme) or not url.database or not url.clear:
        # Not what it is: it may hold a password.
        raise HarnessError(f"TEST_DATABASE_URL is not the URL of a Postgres database. {_EXAMPLE}")
    if elsewhere := sorted(url.parameters & _ELSEWHERE):
        raise HarnessError(
            f"TEST_DATABASE_URL has the parameter {elsewhere[0]}, which may lead to another database "
            f"than the rest of it says. {_EXAMPLE}"
        )
    if complaint := urls.complaint(environment.external_url.partition("?")[2]):
        raise HarnessError(f"TEST_DATABASE_URL {complaint}. Take it out, {_INSTEAD}.")
    if len(url.servers) > 1:
        raise HarnessError(
            "TEST_DATABASE_URL names several hosts, and each connection may reach another one. Name the "
            f"one that is for tests. {_EXAMPLE}"
        )
    for variable, value in environment.application_urls.items():
        own = read(value)
        if own and own.meets(url):
            raise HarnessError(
                f"TEST_DATABASE_URL names the application's own database, the one in {variable}. "
                "Tests never use it: name another database, for example `postgres` on a server for tests, "
                f"{_INSTEAD}."
            )
    _check_host(url, "TEST_DATABASE_URL", "Tests create and drop databases there.")


def check_redis_url(environment: Environment) -> None:
    """The same for `TEST_REDIS_URL`."""
    if environment.external_redis_url is None:
        return
    url = read(environment.external_redis_url)
    if (
        url is None
        or url.scheme not in ("redis", "rediss", "unix")
        or not (url.database.isdecimal() and url.clear)
        or url.parameters & _REDIS_ELSEWHERE
    ):
        raise HarnessError(f"TEST_REDIS_URL is not the URL of a Redis. {_REDIS_EXAMPLE}")
    check_redis_database(environment)
    _check_host(url, "TEST_REDIS_URL", "Tests empty databases there.")


def check_redis_database(environment: Environment) -> None:
    """Refuse to give this worker the application's own Redis database.

    Raises:
        HarnessError: `TEST_REDIS_URL` leads there.
    """
    mine = read(environment.redis_url)
    own = read(environment.application_redis_url or "")
    if mine and own and own.meets(mine):
        raise HarnessError(
            f"TEST_REDIS_URL leads to the application's own Redis database, number {mine.database}, the one "
            "in REDIS_URL. Tests empty theirs: name another number (with pytest-xdist, each worker takes "
            f"the next one), {_INSTEAD}."
        )


def read(text: str) -> Address | None:
    """Where the URL of a Postgres or of a Redis leads; None if it is none."""
    found = _URL.fullmatch(text)
    if found is None:
        return None
    scheme, hosts, path = found["scheme"], found["hosts"], unquote(found["path"] or "")
    query = parse_qs(found["query"] or "", keep_blank_values=True)
    clear = not re.search("[/?#]", found["password"] or "")
    if scheme == "unix":
        servers, database = [(f"/{path}", 0)], query.get("db", ["0"])[-1]
    elif scheme.startswith("redis"):
        servers, database = _servers(hosts, REDIS_PORT), query.get("db", [path or "0"])[-1]
        clear = clear and "db" not in query
    else:
        clear = clear and not (hosts and {"host", "port"} & query.keys())
        # What is missing, all drivers take from where psql does.
        named = hosts or ",".join(query.get("host", [os.environ.get("PGHOST", "")]))
        port = query.get("port", [os.environ.get("PGPORT", "")])[-1]
        servers = _servers(named, int(port) if port.isdecimal() else PORT)
        database = path or unquote(found["user"] or "")
    return Address(scheme, servers, database, {*query}, clear) if servers else None


def _servers(hosts: str, port: int) -> list[tuple[str, int]]:
    found = []
    for part in hosts.lower().split(","):
        socket = _SOCKET.fullmatch(part)
        names, own = (socket["folder"], socket["port"]) if socket else (part, None)
        for name in unquote(names).split(","):
            if name.startswith("/"):  # with any colons: /cloudsql/project:region:instance
                found.append((_HERE, int(own or port)))
                continue
            server = _HOST.fullmatch(name)
            if server is None:
                return []
            host = server["ipv6"] or server["host"] or ""
            found.append((_HERE if _is_here(host) else host, int(server["port"] or own or port)))
    return found


def _is_here(host: str) -> bool:
    """Whether it is this machine: a loopback name or address, or the folder of a socket."""
    if host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(url: Address, variable: str, why: str) -> None:
    for host, _ in url.servers:
        if (
            host != _HERE
            and not host.startswith("/")
            and host not in setting("harness_allowed_hosts")
        ):
            raise HarnessError(
                f"{variable} names the host {host}, which is not this machine. {why} If that server is "
                "for tests, allow it in pyproject.toml:\n\n"
                f'    [{table_of_pytest()}]\n    harness_allowed_hosts = ["{host}"]'
            )


def setting(name: str) -> frozenset[str]:
    """The hosts of a setting of pytest in pyproject.toml, in lower case, and paths as they are."""
    hosts = pytest_section().get(name, [])
    found = hosts.split() if isinstance(hosts, str) else hosts
    named = (name.strip() for name in found)
    return frozenset(name if name.startswith("/") else name.lower() for name in named)


def pytest_section() -> dict[str, Any]:
    """What pyproject.toml says to pytest, in either of the two places for that."""
    pytest = _pytest()
    in_ini_options = pytest.pop("ini_options", {})
    return {**pytest, **in_ini_options}


def table_of_pytest() -> str:
    """The one of the two where pyproject.toml has it: pytest refuses a file that has both."""
    return "tool.pytest" if _pytest().keys() - {"ini_options"} else "tool.pytest.ini_options"


def _pytest() -> dict[str, Any]:
    path = ROOT / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found: dict[str, Any] = tomllib.loads(text).get("tool", {}).get("pytest", {})
    return found


def check_server(connection: Connection) -> None:
    """Refuse a server that the harness can't work with. Writes nothing.

    Raises:
        HarnessError: it is too old or can't be written to, a pooler stands before it, it keeps no
            statistics, or our role may not create databases, or not write to them.
    """
    row = connection.execute(
        """
        SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
               current_setting('transaction_read_only'), current_setting('track_counts'),
               rolsuper OR rolcreatedb, rolsuper OR rolinherit, quote_ident(current_user)
        FROM pg_roles WHERE rolname = current_user
        """
    ).fetchone()
    assert row is not None
    version, replica, read_only, counts, may_create, inherits, role = row
    info = connection.info
    where = f"The server of TEST_DATABASE_URL ({info.host}:{info.port})"
    if version < OLDEST * 10000:
        raise HarnessError(
            f"{where} is Postgres {version // 10000}. The harness needs {OLDEST} or newer: name such a "
            f"server, {_INSTEAD}."
        )
    if replica or read_only == "on":
        what = "a read-only replica" if replica else "read-only (default_transaction_read_only)"
        raise HarnessError(
            f"{where} is {what}: no databases can be made there. Name its primary, if that one is for "
            f"tests, {_INSTEAD}."
        )
    if counts != "on":
        raise HarnessError(
            f"{where} has track_counts = off: it could not be told whether a test left something. Turn it "
            f"on there, {_INSTEAD}."
        )
    if not may_create:
        raise HarnessError(
            f"{where} does not let the role {role} create databases, and each run makes its own. Let a "
            f"superuser run\n\n    ALTER ROLE {role} CREATEDB\n\n{_INSTEAD}."
        )
    if not inherits and version < 160000:
        raise HarnessError(
            f"{where} is Postgres {version // 10000}, where the role {role}, which inherits nothing, may write nothing to "
            f"the databases that it makes. Let a superuser run\n\n    ALTER ROLE {role} INHERIT\n\n{_INSTEAD}."
        )
    _check_no_pooler(connection, where)


def _check_no_pooler(connection: Connection, where: str) -> None:
    """Session locks and databases that come and go need a session of one's own."""
    pid = connection.info.backend_pid
    seen = {connection.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}
    if seen != {(pid,)}:
        raise HarnessError(
            f"{where} is a connection pooler: it shares sessions, which the harness locks by. Name the "
            f"Postgres behind it, {_INSTEAD}."
        )
