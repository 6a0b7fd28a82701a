"""While tests run, nothing leaves this machine, and unit tests reach no server on it, either.

Connections go to loopback addresses, to Unix sockets, to the servers that the tests were given, and to
hosts that `harness_allowed_connections` in pyproject.toml names; a test marked `network` or `llm`
may connect anywhere. Other names are not even looked up.

The rule is kept where sockets connect: by an audit hook, which Python calls before any socket of its
own does, in whatever thread, and by functions put before those of libraries that connect in C:
psycopg, psycopg2, uvloop. Neither sees what other processes do, nor other libraries in C; they see
what `shell.py` makes of the environment. (pytest-socket would replace some of this. It guards
`connect` in Python alone, between a test's setup and its teardown, and fails tests for what a
library's background thread does.)

Whoever is refused in a test's own call gets a HarnessError, and the test fails even if that is
swallowed. A library's background thread gets an OSError, as where there is no network, and no test
fails for it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import os
import socket
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType
from typing import Any

import pytest

from .. import environment, shell
from ..environment import PORT, ROOT, Environment
from ..errors import HarnessError
from ..servers.guard import REDIS_PORT, read, setting

SETTING = "harness_allowed_connections"

_INET = (socket.AF_INET, socket.AF_INET6)
_LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname"}
_REVERSE = {"socket.gethostbyaddr", "socket.getnameinfo"}
_CONNECTS = {"socket.connect", "socket.sendto", "socket.sendmsg"}


class RefusedError(HarnessError):
    """A connection that a test may not make."""


class UnitTestConnectedError(RefusedError):
    """A test marked `unit` reached for a server."""

    def __init__(self) -> None:
        super().__init__(
            "This test is marked unit, and connected to a database or to Redis. Mark it "
            "@pytest.mark.integration instead: then it gets a seeded database and a Redis of its own."
        )


class _NoNetworkError(RefusedError, OSError):
    """The same for a thread of which no test knows: what it takes for a fault of the network."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENETUNREACH


# Sockets know nothing of tests, so this is the process's.
_installed = False
_environment: Environment
_targets: set[Any] = set()
_unit = False  # no servers
_open = False  # everything
_refused: list[RefusedError] = []  # in calls of the present test
_in_background: Counter[str] = Counter()
_resolved: dict[str, set[str]] = {}  # addresses, and the names for which they were given

_of_a_test: ContextVar[bool] = ContextVar("_of_a_test", default=False)
"""Whether what runs was begun by the thread that runs tests, be it in a task or by `to_thread`."""


@contextmanager
def offline(value: bool = True) -> Iterator[None]:
    """Let connections to servers fail for a while, or, with False, let the harness itself connect."""
    global _unit  # noqa: PLW0603
    before, _unit = _unit, value
    try:
        yield
    finally:
        _unit = before


def is_offline() -> bool:
    """Whether a unit test runs."""
    return _unit


@contextmanager
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let connections go anywhere, by the proxy and with the certificates of the user's shell."""
    global _open  # noqa: PLW0603
    for name, value in shell.of_the_user().items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    _open = True
    try:
        yield
    finally:
        _open = False
        monkeypatch.undo()


# --- what may be reached ------------------------------------------------------------------------


def _check(host: str, port: int | None) -> None:
    """Raise if no connection may go there; without a port, if the name may not be looked up."""
    __tracebackhide__ = True
    if _unit and port in _targets:
        _refuse_unit_test()
    if not _open and not any(_may_be_reached(h, port) for h in (host, *_resolved.get(host, ()))):
        _refuse(host, port)


def _may_be_reached(host: str, port: int | None) -> bool:
    return _is_here(host) or _is_allowed(host, port)


def _is_here(host: str) -> bool:
    host = host.partition("%")[0].rstrip(".").lower()
    if host in ("", "localhost", "ip6-localhost", "ip6-loopback", socket.gethostname().lower()):
        return True
    address = _numeric(host)
    if address is None:
        return host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_allowed(host: str, port: int | None) -> bool:
    host = host.rstrip(".").lower()
    if port is None:
        return any(name == host for name, _ in _allowed())
    return not {(host, None), (host, port)}.isdisjoint(_allowed())


@functools.cache  # asked of each connection that would leave this machine
def _allowed() -> set[tuple[str, int | None]]:
    """Hosts and ports that tests may reach; without a port, all of a host's."""
    found: set[tuple[str, int | None]] = set()
    for name in setting(SETTING):
        host, colon, port = name.rpartition(":")
        with_port = colon and port.isdecimal() and _numeric(name) is None
        found.add((host.strip("[]"), int(port)) if with_port else (name.strip("[]"), None))
    given = filter(None, (_environment.external_url, _environment.external_redis_url))
    return found.union(*(address.servers for address in map(read, given) if address))


def _refuse_unit_test() -> None:
    __tracebackhide__ = True
    error = UnitTestConnectedError()
    if _is_of_a_test():
        _refused.append(error)
    raise error


def _refuse(host: str, port: int | None) -> None:
    __tracebackhide__ = True
    name = f"[{host}]" if ":" in host else host
    address = name if port is None else f"{name}:{port}"
    own = _is_of_a_test()
    caller = _caller(innermost=own)
    what = "the address of" if port is None else "a connection to"
    said = f"{caller} asked for {what} {address}, and was refused: tests don't leave this machine."
    if not own:
        _in_background[f"{address} ({caller})"] += 1
        raise _NoNetworkError(said)
    error = RefusedError(
        f"{said} Where they are to reach that server, allow it in pyproject.toml:\n\n"
        f'    [tool.pytest.ini_options]\n    {SETTING} = ["{host}"]\n\n'
        "or mark the tests that mean it @pytest.mark.network."
    )
    _refused.append(error)
    raise error


def _is_of_a_test() -> bool:
    return _of_a_test.get() or threading.get_ident() == threading.main_thread().ident


_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_HARNESS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _caller(*, innermost: bool) -> str:
    """File and line: of the project's own, or else of a library's."""
    library = ""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        _, installed, inside = path.rpartition(f"site-packages{os.sep}")
        if installed:
            library = library if library and innermost else f"{inside}:{frame.f_lineno}"
        elif path.startswith(f"{ROOT}{os.sep}") and not path.startswith(_HARNESS):
            return f"{os.path.relpath(path, ROOT)}:{frame.f_lineno}"
        elif not path.startswith((*_STANDARD, _HARNESS, "<")):
            library = library if library and innermost else f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return library or f"The thread {threading.current_thread().name}"


# --- where sockets connect ----------------------------------------------------------------------


def install(current: Environment) -> None:
    """Watch the ways to a server, for the rest of the process."""
    global _installed, _environment, _targets  # noqa: PLW0603
    _environment, _targets = current, _servers(current)
    _allowed.cache_clear()
    _of_a_test.set(True)
    if _installed:  # pytest may run more than once in a process
        return
    _installed = True
    sys.addaudithook(_audit)
    for name in ("connect", "connect_ex", "sendto"):
        _put_before(socket.socket, name, _before_look_up)
    socket.getaddrinfo = _remembering(socket.getaddrinfo)
    # Asked here, in the task that waits; the look-up is made in a thread.
    _put_before(asyncio.BaseEventLoop, "getaddrinfo", lambda _, host, *__, **___: _look_up(host))
    for name, watch in _IN_C.items():
        if name in sys.modules:
            watch(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def _servers(current: Environment) -> set[Any]:
    """Ports and sockets of the servers that a test may reach by mistake."""
    urls = (
        current.external_url,
        current.external_redis_url,
        current.application_url,
        current.application_redis_url,
    )
    addresses = [address for address in map(read, filter(None, urls)) if address]
    known = {name for address in addresses for server in address.servers for name in server}
    return {*known, PORT, REDIS_PORT, str(current.redis_socket)}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    __tracebackhide__ = True
    if event in _CONNECTS:
        _connect(*arguments[:2])
    elif event in _LOOK_UPS:
        _look_up(arguments[0])
    elif event in _REVERSE:
        (address,) = arguments
        _check(_text(address[0] if isinstance(address, tuple) else address), None)


def _connect(connection: socket.socket, address: Any) -> None:
    __tracebackhide__ = True
    if address is None:  # a message on a socket that is connected
        return
    try:
        if connection.family in _INET:
            _check(_text(address[0]), address[1])
        elif connection.family == socket.AF_UNIX and _unit and _is_server(_text(address)):
            _refuse_unit_test()
    except HarnessError as error:
        if not isinstance(error, OSError):
            connection.close()  # who tried to connect expects other errors, and would leave it open
        raise


def _is_server(path: str) -> bool:
    name = os.path.basename(path)
    return path in _targets or ".s.PGSQL." in name or "redis" in name or "valkey" in name


def _text(name: Any) -> str:
    return name if isinstance(name, str) else os.fsdecode(bytes(name))


def _look_up(host: Any) -> None:
    __tracebackhide__ = True
    if _is_name(host):
        _check(_text(host), None)


def _is_name(host: Any) -> bool:
    return host is not None and _numeric(_text(host)) is None


def _before_look_up(connection: socket.socket, *arguments: Any) -> None:
    """Ask before Python does: it looks a name up first, and calls the hook then."""
    __tracebackhide__ = True
    address = arguments[-1]
    if connection.family in _INET and isinstance(address, tuple) and _is_name(address[0]):
        _connect(connection, address)


def _put_before(owner: Any, name: str, check: Callable[..., None]) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        check(*args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, checked)


def _remembering(real: Callable[..., Any]) -> Callable[..., Any]:
    """A look-up of a name that may be reached: so may its addresses."""

    @functools.wraps(real)
    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(host, *args, **kwargs)
        if _is_name(host):
            for *_, address in found:
                _resolved.setdefault(str(address[0]), set()).add(_text(host))
        return found

    return getaddrinfo


# --- libraries that connect in C ----------------------------------------------------------------


def _watch_psycopg(module: ModuleType) -> None:
    def check(conninfo: str, *_: Any, **__: Any) -> None:
        parameters = module.conninfo.conninfo_to_dict(conninfo)
        if not parameters.get("application_name", "").startswith("tests.harness"):
            _check_libpq(parameters)

    _put_before(module.generators, "connect", check)


def _watch_psycopg2(module: ModuleType) -> None:
    def check(dsn: str, *_: Any, **__: Any) -> None:
        _check_libpq(module.extensions.parse_dsn(dsn))

    _put_before(module, "_connect", check)


def _check_libpq(parameters: dict[str, Any]) -> None:
    __tracebackhide__ = True
    if _unit:
        _refuse_unit_test()
    service = parameters.get("service") or os.environ.get("PGSERVICE")
    hosts = parameters.get("hostaddr") or parameters.get("host") or os.environ.get("PGHOST", "")
    if service:
        hosts = f"service={service}"
    ports = str(parameters.get("port") or os.environ.get("PGPORT", PORT)).split(",")
    for number, host in enumerate(hosts.split(",")):
        if not host.startswith(("/", "@")):
            _check(host, int(ports[number % len(ports)]))


def _watch_uvloop(module: ModuleType) -> None:
    def connecting(_: Any, __: Any, host: Any = None, port: Any = None, **___: Any) -> None:
        if host is not None:
            _check(_text(host), port)

    def datagrams(_: Any, __: Any, ___: Any = None, remote_addr: Any = None, **____: Any) -> None:
        if isinstance(remote_addr, tuple):
            _check(_text(remote_addr[0]), remote_addr[1])

    _put_before(module.Loop, "create_connection", connecting)
    _put_before(module.Loop, "create_datagram_endpoint", datagrams)
    _put_before(module.Loop, "getaddrinfo", lambda _, host, *__, **___: _look_up(host))


_IN_C = {"psycopg": _watch_psycopg, "psycopg2": _watch_psycopg2, "uvloop": _watch_uvloop}


class _Finder(MetaPathFinder):
    """Watches such a library once somebody imports it; until then it costs nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _IN_C:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_watch(module: ModuleType) -> None:
                load(module)
                _IN_C[fullname](module)

            spec.loader.exec_module = load_and_watch  # type: ignore[method-assign]
        return spec


# --- what pytest sees ---------------------------------------------------------------------------

_MARKERS = ("network", "llm")
_OUTPUT = "harness_refused"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        SETTING,
        "Hosts (or host:port), besides this one, to which tests may connect. Read from pyproject.toml alone.",
        type="linelist",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "network: may connect anywhere, by the proxy and with the certificates of the shell",
    )
    install(environment.current)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _refused.clear()
    unit = item.get_closest_marker("unit") is not None
    leaves = any(item.get_closest_marker(name) for name in _MARKERS)
    with offline(unit), _online(pytest.MonkeyPatch()) if leaves else nullcontext():
        return (yield)


@contextmanager
def _told(*, swallowed: bool = True) -> Iterator[None]:
    """Let a test fail for what it was refused, even if that was swallowed."""
    try:
        yield
    except RefusedError:
        raise
    except pytest.skip.Exception as error:  # for want of a network, perhaps; but never of a server
        for refusal in _refused:
            if isinstance(refusal, UnitTestConnectedError):
                raise refusal from error
        raise
    except (Exception, pytest.fail.Exception) as error:
        if _refused:
            raise _refused[0] from error
        raise
    if _refused and swallowed:
        raise _refused[0]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with _told(swallowed=False):  # the call will tell
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with _told():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    _refused.clear()
    with _told():
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_OUTPUT] = dict(_in_background)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    _in_background.update(getattr(node, "workeroutput", {}).get(_OUTPUT, {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for who, times in _in_background.most_common(5):
        terminalreporter.write_line(
            f"refused to a background thread, {times} times: {who}", yellow=True
        )
