"""Where a socket is about to connect: whether to this machine, or an allowed host, and to whose Postgres.

Imports nothing of the harness: `children/sitecustomize.py` loads this file alone, before any program,
which may be one of the system's own Python: both work with 3.8 and newer.
"""

from __future__ import annotations

import os
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing is half of what this costs
if TYPE_CHECKING:
    from collections.abc import Callable, Set
    from typing import Any

CONNECTS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
REDIS = [f"{of}.connection" for of in ("redis", "redis.asyncio", "valkey", "valkey.asyncio")]
_LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname"}
_REVERSE = {"socket.gethostbyaddr", "socket.getnameinfo"}

_names: dict[str, set[str]] = {}
"""Addresses, and the names for which they were given."""


def asked(event: str, arguments: tuple[Any, ...]) -> tuple[str, int | None] | None:
    """The host and the port that an audit event of Python's is about; no port for a look-up."""
    if event in CONNECTS:
        connection, address, *_ = arguments
        if connection.family not in _inet() or address is None:  # None: it is connected
            return None
        return text(address[0]), address[1]
    if event in _LOOK_UPS:
        return (text(arguments[0]), None) if is_name(arguments[0]) else None
    if event in _REVERSE:
        (address,) = arguments
        return text(address[0] if isinstance(address, tuple) else address), None
    return None


def may_be_reached(host: str, port: int | None, allowed: Set[tuple[str, int | None]]) -> bool:
    """Whether a connection may go there; without a port, whether the name may be looked up.

    Args:
        host: name or address.
        port: of the server.
        allowed: hosts and ports besides this machine; without a port, all of a host's.
    """
    return any(is_here(name) or _is_allowed(name, port, allowed) for name in _called(host))


def is_unnamed(host: str, port: int, allowed: Set[tuple[str, int | None]]) -> bool:
    """Whether it is on this machine, and allowed by none of the names that lead there."""
    names = _called(host)
    if not any(map(is_here, names)) or any(_is_allowed(name, port, allowed) for name in names):
        return False
    return {None, port}.isdisjoint(allowed_port for name, allowed_port in allowed if is_here(name))


def asked_socket(event: str, arguments: tuple[Any, ...]) -> str:
    """The path of the Unix socket to which an audit event connects; empty if it does not."""
    if event not in CONNECTS or arguments[1] is None or arguments[0].family in _inet():
        return ""
    return text(arguments[1]) if isinstance(arguments[1], (str, bytes)) else ""


def ask_of_libpq(
    parameters: dict[str, Any],
    check: Callable[[str, int], None],
    check_socket: Callable[[str], None],
) -> None:
    """Ask of each place where libpq would connect.

    Args:
        parameters: as its connection strings have them.
        check: is asked of a host and a port, and may raise.
        check_socket: of the path of a socket.
    """
    __tracebackhide__ = True
    hosts = parameters.get("hostaddr") or parameters.get("host") or os.environ.get("PGHOST", "")
    if service := parameters.get("service") or os.environ.get("PGSERVICE"):
        hosts = f"service={service}"
    ports = str(parameters.get("port") or os.environ.get("PGPORT", "5432")).split(",")
    for number, host in enumerate(hosts.split(",")):
        port = ports[number % len(ports)] or "5432"
        if not host or host.startswith(("/", "@")):
            check_socket(f"{host or '/(the default folder)'}/.s.PGSQL.{port}")
        else:
            check(host, int(port))


def watch_asyncpg(module: Any, check: Callable[[str, int], None]) -> None:
    """Let asyncpg ask of each host and port to which it connects."""

    def connecting(*, addr: Any, **_: Any) -> None:
        if not isinstance(addr, str):  # a socket is asked of where it connects
            check(*addr[:2])

    put_before(module, "_connect_addr", connecting)


def watch_redis(
    module: Any, check: Callable[[str, int], None], check_socket: Callable[[str], None]
) -> None:
    """The same for redis-py, or its heir valkey-py, of which each kind of calls has its module."""
    put_before(module.Connection, "_connect", lambda self: check(self.host, int(self.port)))
    put_before(
        module.UnixDomainSocketConnection, "_connect", lambda self: check_socket(text(self.path))
    )


def watch_psycopg(module: Any, check: Callable[[dict[str, Any]], None]) -> None:
    """Let psycopg ask with what it connects."""

    def connecting(conninfo: str, *_: Any, **__: Any) -> None:
        check(module.conninfo.conninfo_to_dict(conninfo))

    put_before(module.generators, "connect", connecting)


def watch_psycopg2(module: Any, check: Callable[[dict[str, Any]], None]) -> None:
    """The same for psycopg2."""

    def connecting(dsn: str, *_: Any, **__: Any) -> None:
        check(module.extensions.parse_dsn(dsn))

    put_before(module, "_connect", connecting)


def put_before(owner: Any, name: str, check: Callable[..., None]) -> None:
    """Let a function begin with another one, which may raise.

    Raises:
        RuntimeError: there is none of that name, in another version of a library.
    """
    import functools

    real = getattr(owner, name, None)
    if real is None:
        raise RuntimeError(
            f"{owner!r} has no {name}: the harness does not know how this version of the library connects. "
            "Update the harness, or take an older one of the library."
        )

    @functools.wraps(real)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        check(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, checked)


class Finder:
    """Watches libraries that connect in C once somebody imports them; until then it costs nothing."""

    def __init__(self, watches: dict[str, Callable[[Any], None]]) -> None:
        self._watches = watches

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Whoever imports is told of a library as ever, but for what is done once it is loaded."""
        watch = self._watches.get(fullname)
        if watch is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_watch(module: Any) -> None:
                load(module)
                watch(module)

            spec.loader.exec_module = load_and_watch  # type: ignore[method-assign]
        return spec


def is_own_socket(path: str, own: Set[str]) -> bool:
    """Whether a socket is the tests' Postgres, or none of any Postgres."""
    return not os.path.basename(path).startswith(".s.PGSQL.") or _is_named(path, own)


def is_strangers_socket(path: str, own: Set[str]) -> bool:
    """Whether a server behind a socket is one that the tests were not given, and did not make."""
    import socket

    if _is_named(path, own) or _listens_itself(path):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return _answers(lambda: probe.connect(path))


def is_strangers(host: str, port: int, allowed: Set[tuple[str, int | None]]) -> bool:
    """The same of a port of this machine."""
    import socket

    if not is_unnamed(host, port, allowed) or _listens_itself(port):
        return False
    return _answers(lambda: socket.create_connection((host, port), timeout=1).close())


def _answers(connect: Callable[[], None]) -> bool:
    """Whether somebody listens: he is connected to, and told nothing.

    Where nobody does, whoever connects is told so by himself.
    """
    try:
        connect()
    except OSError as error:
        # It listens, and has more to do; a socket says so at once.
        return isinstance(error, (TimeoutError, BlockingIOError))
    return True


def _is_named(path: str, own: Set[str]) -> bool:
    """Whether a socket, its name or a folder above it is among those."""
    if not _spelled(path).isdisjoint(own):
        return True
    in_a_folder = "\0" not in path  # or it is one of Linux's, which are in none
    return in_a_folder and not _spelled(os.path.realpath(path)).isdisjoint(own)


def _spelled(path: str) -> set[str]:
    """A path's last part, the path, and each folder above it."""
    found = {os.path.basename(path)}
    while path not in found:
        found.add(path)
        path = os.path.dirname(path)
    return found


def _listens_itself(where: int | str) -> bool:
    """Whether this process listens at a port, or a socket, be it by a library in C."""
    import socket

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)  # with one, to look at a socket would change how it waits
    try:
        for number in os.listdir("/dev/fd"):
            try:
                mine = socket.socket(fileno=int(number))
            except OSError:  # a file
                continue
            try:
                listens = mine.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if not listens:
                    continue
                address = mine.getsockname()
                if where == (address[1] if mine.family in _inet() else address):
                    return True
            finally:
                mine.detach()
        return False
    finally:
        socket.setdefaulttimeout(timeout)


def name(host: str, port: int | None) -> str:
    """An address as people write it."""
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def is_here(host: str) -> bool:
    """Whether a name or an address is this machine's."""
    import _socket

    host = host.partition("%")[0].rstrip(".").lower()
    if host in ("", "localhost", "ip6-localhost", "ip6-loopback", _socket.gethostname().lower()):
        return True
    address = _numeric(host)
    if address is None:
        return host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def is_name(host: Any) -> bool:
    """Whether it is a name, to be looked up, and no address."""
    return host is not None and _numeric(text(host)) is None


def text(host: Any) -> str:
    """A host as the functions of sockets take it: text or bytes."""
    return host if isinstance(host, str) else os.fsdecode(bytes(host))


def remembering(real: Callable[..., Any]) -> Callable[..., Any]:
    """A look-up of a name that may be reached: so may its addresses."""

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(host, *args, **kwargs)
        if is_name(host):
            for *_, address in found:
                _names.setdefault(str(address[0]), set()).add(text(host))
        return found

    return getaddrinfo


def _called(host: str) -> set[str]:
    """A host, and the names for which it was given."""
    return {host, *_names.get(host, ())}


def _inet() -> tuple[int, int]:
    import _socket  # there already, where somebody connects

    return _socket.AF_INET, _socket.AF_INET6


def _numeric(host: str) -> Any:
    import ipaddress

    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_allowed(host: str, port: int | None, allowed: Set[tuple[str, int | None]]) -> bool:
    host = host.rstrip(".").lower()
    if port is None:
        return any(name == host for name, _ in allowed)
    return not {(host, None), (host, port)}.isdisjoint(allowed)
