"""What is refused before anything is written."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qs, urlsplit

from tests.harness.environment import PORT, Environment
from tests.harness.errors import HarnessError

if TYPE_CHECKING:
    from tests.harness.databases import Connection

_SCHEMES = ("postgresql", "postgresql+asyncpg", "postgres")
_OLDEST = 15


def check_url(environment: Environment, allowed_hosts: Iterable[str]) -> None:
    """Refuse a `TEST_DATABASE_URL` that may not be meant for tests. Connects to nothing.

    Raises:
        HarnessError: it is no Postgres URL, the application's own, or of a host that is neither
            this machine nor allowed by `harness_allowed_hosts` in pyproject.toml.
    """
    if environment.external_url is None:
        return
    try:
        url = urlsplit(environment.external_url)
        host, port = _host(url), url.port or PORT
    except ValueError as error:
        raise HarnessError(f"TEST_DATABASE_URL is not a URL: {error}.\n{_EXAMPLE}") from error
    if url.scheme not in _SCHEMES or not url.path.strip("/"):
        raise HarnessError(f"TEST_DATABASE_URL is not the URL of a Postgres database.\n{_EXAMPLE}")
    if environment.application_url:
        own = urlsplit(environment.application_url)
        if (_host(own), own.port or PORT, own.path) == (host, port, url.path):
            raise HarnessError(
                "TEST_DATABASE_URL names the application's own database, the one in DATABASE_URL. "
                "Tests never use it: name another database, for example `postgres` on a server for tests, "
                "or unset TEST_DATABASE_URL to use the embedded server."
            )
    if not _is_local(host) and host not in set(allowed_hosts):
        raise HarnessError(
            f"TEST_DATABASE_URL names the host {host}, which is not this machine. Tests create and drop "
            "databases there. If that server is for tests, allow it in pyproject.toml:\n\n"
            f'    [tool.pytest.ini_options]\n    harness_allowed_hosts = ["{host}"]'
        )


_EXAMPLE = (
    "It should look like postgresql+asyncpg://user:password@localhost:5432/postgres. "
    "Unset it to use the embedded server."
)


def _host(url: SplitResult) -> str:
    query = parse_qs(url.query)
    return url.hostname or query.get("host", [""])[0]


def _is_local(host: str) -> bool:
    if not host or host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_redis_url(environment: Environment, allowed_hosts: Iterable[str]) -> None:
    """The same for `TEST_REDIS_URL`."""
    if environment.external_redis_url is None:
        return
    if environment.external_redis_url == environment.application_redis_url:
        raise HarnessError(
            "TEST_REDIS_URL names the application's own Redis, the one in REDIS_URL. Tests empty theirs: name "
            "another, or unset TEST_REDIS_URL to use the embedded server."
        )
    try:
        host = urlsplit(environment.redis_url).hostname or ""
    except ValueError as error:
        raise HarnessError(
            f"TEST_REDIS_URL is not a URL like redis://localhost:6379/1: {error}."
        ) from error
    if not _is_local(host) and host not in set(allowed_hosts):
        raise HarnessError(
            f"TEST_REDIS_URL names the host {host}, which is not this machine. Tests empty databases there. If "
            "that server is for tests, allow it in pyproject.toml:\n\n"
            f'    [tool.pytest.ini_options]\n    harness_allowed_hosts = ["{host}"]'
        )


def check_server(connection: Connection) -> None:
    """Refuse a server that the harness can't work with.

    Raises:
        HarnessError: it is too old or a replica, a pooler stands before it, it keeps no
            statistics, or our role may not create databases.
    """
    row = connection.execute(
        """
        SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('track_counts'),
               rolsuper OR rolcreatedb, current_user
        FROM pg_roles WHERE rolname = current_user
        """
    ).fetchone()
    assert row is not None
    version, replica, counts, may_create, role = row
    where = "The tests' database server"
    if version < _OLDEST * 10000:
        raise HarnessError(
            f"{where} is Postgres {version // 10000}. The harness needs {_OLDEST} or newer."
        )
    if replica:
        raise HarnessError(
            f"{where} is a read-only replica. Name its primary, if that one is for tests."
        )
    if counts != "on":
        raise HarnessError(
            f"{where} has track_counts = off: it could not be told whether a test left something."
        )
    if not may_create:
        raise HarnessError(
            f"The role {role} may not create databases on the tests' server. Let a superuser run\n\n"
            f"    ALTER ROLE {role} CREATEDB"
        )
    _check_no_pooler(connection)


def _check_no_pooler(connection: Connection) -> None:
    """Session locks and databases that come and go need a session of one's own."""
    pid = connection.info.backend_pid
    seen = {connection.execute("SELECT pg_backend_pid()").fetchone() for _ in range(3)}
    if seen != {(pid,)}:
        raise HarnessError(
            "There is a connection pooler before the tests' database server: it shares sessions, which the "
            "harness locks by. Let TEST_DATABASE_URL name the server itself."
        )
