"""While tests run, nothing leaves this machine, and nobody on it is reached by mistake.

Connections go to loopback addresses, to Unix sockets, to the servers that the tests were given, and to
hosts that `harness_allowed_connections` in pyproject.toml names; a test marked `network` or `llm`
may connect anywhere. Other names are not even looked up. Unit tests reach no server at all; other tests
no Postgres of this machine but their own, and no other Redis if they have one, whatever its port. Of
what is no driver, nobody knows to what it connects: it reaches all but the application's Postgres, and one
at the port and the sockets that drivers take where they are told of none.

The rule is kept where sockets connect: by an audit hook, which Python calls before any socket of its
own does, in whatever thread, and by functions put before those of libraries that connect in C (psycopg,
psycopg2, uvloop) or are drivers of servers (asyncpg, redis-py, valkey-py). Processes of Python that tests start, the
seeder among them, have the same, but for uvloop: see `children/sitecustomize.py`. Neither sees other
programs, nor other libraries in C; they see what `shell.py` makes of the environment.
(pytest-socket would replace some of this. It guards `connect` in Python alone, between a test's setup and
its teardown, and fails tests for what a library's background thread does.)

Whoever is refused in a test's own call gets a HarnessError, and the test fails even if that is
swallowed. A library's background thread that would leave this machine gets an OSError, as where there
is no network, and no test fails for it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import FrameType, ModuleType
from typing import Any

import pytest

from .. import environment, markers, shell
from ..environment import APPLICATION, PORT, Environment
from ..errors import HarnessError
from ..layout import ROOT
from ..servers.guard import REDIS_PORT, read, setting, table_of_pytest
from . import addresses
from .addresses import put_before

SETTING = "harness_allowed_connections"
_REACHED = "HARNESS_REACHED"
_POSTGRES = "HARNESS_POSTGRES"
_REDIS = "HARNESS_REDIS"
_FOUND = "HARNESS_PYTHONPATH"
_CHILDREN = os.path.join(os.path.dirname(__file__), "children")


class RefusedError(HarnessError):
    """A connection that a test may not make."""


class UnitTestConnectedError(RefusedError):
    """A test marked `unit` reached for a server."""

    def __init__(self) -> None:
        super().__init__(
            f"This test is marked {markers.unit}, and connected to a database or to Redis. Mark it "
            "@pytest.mark.integration instead: then it gets a seeded database and a Redis of its own."
        )


class AnotherServerError(RefusedError):
    """Something reached for a Postgres, or a Redis, that is not the tests'."""


class _NoNetworkError(RefusedError, OSError):
    """The same for a thread of which no test knows: what it takes for a fault of the network."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENETUNREACH


# Sockets know nothing of tests, so this is the process's.
_installed = False
_environment: Environment
_unit = False  # no servers
_open = False  # everything
_refused: list[RefusedError] = []  # in calls of the present test
_in_background: Counter[str] = Counter()

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
    for name in (_REACHED, _POSTGRES, _REDIS):
        monkeypatch.delenv(name, raising=False)
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
    if _unit and port in _targets():
        _refuse_unit_test()
    if not _open and not addresses.may_be_reached(host, port, _allowed()):
        _refuse(host, port)
    if (
        not _open
        and port is not None
        and port in _others()
        and addresses.is_unnamed(host, port, _allowed())
    ):
        _refuse_server(addresses.name(host, port), f"localhost:{port}")


def _check_server(host: str, port: int) -> None:
    """The same for a driver, which knows what answers at whatever port."""
    __tracebackhide__ = True
    _check(host, port)
    if not _open and addresses.is_strangers(host, port, _allowed()):
        _refuse_server(addresses.name(host, port), f"localhost:{port}")


def _check_redis(host: str, port: int) -> None:
    __tracebackhide__ = True
    if _environment.redis:  # or the tests have what the developers have
        _check_server(host, port)


def _check_redis_socket(path: str) -> None:
    __tracebackhide__ = True
    if _environment.redis and not _open and addresses.is_strangers_socket(path, _sockets()):
        _refuse_server(path, path)


@functools.cache  # asked of each connection that would leave this machine
def _allowed() -> set[tuple[str, int | None]]:
    """Hosts and ports that tests may reach; without a port, all of a host's."""
    found: set[tuple[str, int | None]] = set()
    for name in setting(SETTING):
        if name.startswith("/"):
            continue  # a socket
        host, colon, port = name.rpartition(":")
        with_port = colon and port.isdecimal() and addresses.is_name(name)
        found.add((host.strip("[]"), int(port)) if with_port else (name.strip("[]"), None))
    for url in (_environment.external_url, _environment.external_redis_url):
        found.update((host, port) for host, port in _servers(url) if not host.startswith("/"))
    return found | ({("", there.port)} if (there := _environment.loopback) else set())


@functools.cache
def _others() -> set[int]:
    """Ports of this machine at which others' Postgres may be: the application's, and libpq's own."""
    own = _environment.application_urls.values()
    return {PORT, *(port for url in own for host, port in _servers(url) if not host)}


@functools.cache
def _sockets() -> set[str]:
    """What the sockets have that tests may reach: their name, their path, or a folder above them."""
    paths = {name for name in setting(SETTING) if name.startswith("/")}
    if not _environment.external_url:
        paths.add(str(_environment.home / "socket"))
    if not _environment.external_redis_url:
        paths.add(str(_environment.redis_socket))
    external = _servers(_environment.external_redis_url)
    paths.update(host for host, _ in external if host.startswith("/"))
    named = {f".s.PGSQL.{port}" for host, port in _allowed() if addresses.is_here(host)}
    return named | {place for path in paths for place in (path, os.path.realpath(path))}


@functools.cache
def _targets() -> set[str | int | None]:
    """Hosts, ports and sockets of the servers that a unit test may reach by mistake."""
    urls = (
        _environment.external_url,
        _environment.external_redis_url,
        *_environment.application_urls.values(),
        _environment.application_redis_url,
    )
    known = {name for url in urls for server in _servers(url) for name in server}
    return {*known, PORT, _environment.port, REDIS_PORT, str(_environment.redis_socket)}


def _servers(url: str | None) -> Sequence[tuple[str, int]]:
    """Host and port of each server to which a URL may lead."""
    address = read(url or "")
    return address.servers if address else ()


def _refuse_unit_test() -> None:
    __tracebackhide__ = True
    error = UnitTestConnectedError()
    if _is_of_a_test():
        _refused.append(error)
    raise error


def _refuse_server(address: str, allow: str) -> None:
    """Raise for a server of this machine, to be allowed by what `allow` says."""
    __tracebackhide__ = True
    changes = "without a port" if allow.startswith("localhost") else "by a folder above it"
    error = AnotherServerError(
        f"{_caller(innermost=True)} asked for a connection to {address}, and was refused: the server there is not "
        f"the tests'. They have theirs from {_variables()}: whoever connects elsewhere read other variables, "
        "or made its settings before prepare() was called. If a test is to reach that server, allow it in "
        f"pyproject.toml, {changes} if it has another one each time:\n\n    [{table_of_pytest()}]\n"
        f'    {SETTING} = ["{allow}"]'
    )
    _refused.append(error)
    raise error


def _variables() -> str:
    own = [*_environment.variables(_environment.database), _environment.redis]
    return ", ".join(filter(None, own))


def _refuse(host: str, port: int | None) -> None:
    __tracebackhide__ = True
    address = addresses.name(host, port)
    own = _is_of_a_test()
    caller = _caller(innermost=own)
    what = "the address of" if port is None else "a connection to"
    said = f"{caller} asked for {what} {address}, and was refused: tests don't leave this machine."
    if not own:
        _in_background[f"{address} ({caller})"] += 1
        raise _NoNetworkError(said)
    error = RefusedError(
        f"{said} Where they are to reach that server, allow it in pyproject.toml:\n\n"
        f'    [{table_of_pytest()}]\n    {SETTING} = ["{host}"]\n\n'
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
    global _installed, _environment  # noqa: PLW0603
    _environment = current
    for known in (_allowed, _others, _sockets, _targets):
        known.cache_clear()
    _of_a_test.set(True)
    if _installed:  # pytest may run more than once in a process
        return
    _installed = True
    sys.addaudithook(_audit)
    for name in ("connect", "connect_ex", "sendto"):
        put_before(socket.socket, name, _before_look_up)
    socket.getaddrinfo = addresses.remembering(socket.getaddrinfo)
    # Asked here, in the task that waits; the look-up is made in a thread.
    put_before(asyncio.BaseEventLoop, "getaddrinfo", _look_up)
    for name, watch in _LIBRARIES.items():
        if name in sys.modules:
            watch(sys.modules[name])
    sys.meta_path.insert(0, addresses.Finder(_LIBRARIES))


def _watch_children() -> None:
    """Let Python, in processes that this one starts, begin with `children/sitecustomize.py`."""
    os.environ[_REACHED] = " ".join(f"{host}:{port or ''}" for host, port in _allowed())
    os.environ[_POSTGRES] = "\n".join([*map(str, _others()), *_sockets()])
    if _environment.redis:
        os.environ[_REDIS] = ""
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p != _CHILDREN]
    os.environ["PYTHONPATH"] = os.pathsep.join([_CHILDREN, *filter(None, others)])


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    __tracebackhide__ = True
    try:
        if where := addresses.asked(event, arguments):
            _check(*where)
        elif _unit and event in addresses.CONNECTS and _is_server(*arguments[:2]):
            _refuse_unit_test()
        elif path := addresses.asked_socket(event, arguments):
            _check_socket(path)
    except HarnessError as error:
        if event in addresses.CONNECTS and not isinstance(error, OSError):
            # Who tried to connect expects other errors, and would leave it open.
            arguments[0].close()
        raise


def _is_server(connection: socket.socket, address: Any) -> bool:
    if connection.family != socket.AF_UNIX or address is None:
        return False
    path = addresses.text(address)
    name = os.path.basename(path)
    return path in _targets() or ".s.PGSQL." in name or "redis" in name or "valkey" in name


def _before_look_up(connection: socket.socket, *arguments: Any) -> None:
    """Ask before Python does: it looks a name up first, and calls the hook then."""
    __tracebackhide__ = True
    address = arguments[-1]
    if isinstance(address, tuple) and addresses.is_name(address[0]):
        _audit("socket.connect", (connection, address))


def _look_up(_: Any, host: Any, *__: Any, **___: Any) -> None:
    __tracebackhide__ = True
    _audit("socket.getaddrinfo", (host,))


# --- libraries that connect in C, and drivers ---------------------------------------------------


def _check_libpq(parameters: dict[str, Any]) -> None:
    __tracebackhide__ = True
    if parameters.get("application_name", "").startswith(APPLICATION):
        return
    if _unit:
        _refuse_unit_test()
    addresses.ask_of_libpq(parameters, _check_server, _check_socket)


def _check_socket(path: str) -> None:
    __tracebackhide__ = True
    if not (_open or addresses.is_own_socket(path, _sockets())):
        _refuse_server(path, f"localhost:{path.rpartition('.')[2]}")


def _watch_uvloop(module: ModuleType) -> None:
    def connecting(_: Any, __: Any, host: Any = None, port: Any = None, **___: Any) -> None:
        if host is not None:
            _check(addresses.text(host), port)

    def connecting_here(_: Any, __: Any, path: Any = None, **___: Any) -> None:
        if path is not None:
            _check_socket(addresses.text(path))

    def datagrams(_: Any, __: Any, ___: Any = None, remote_addr: Any = None, **____: Any) -> None:
        if isinstance(remote_addr, tuple):
            _check(addresses.text(remote_addr[0]), remote_addr[1])

    put_before(module.Loop, "create_connection", connecting)
    put_before(module.Loop, "create_unix_connection", connecting_here)
    put_before(module.Loop, "create_datagram_endpoint", datagrams)
    put_before(module.Loop, "getaddrinfo", _look_up)


_LIBRARIES: dict[str, Callable[[Any], None]] = {
    "asyncpg.connect_utils": lambda module: addresses.watch_asyncpg(module, _check_server),
    "psycopg": lambda module: addresses.watch_psycopg(module, _check_libpq),
    "psycopg2": lambda module: addresses.watch_psycopg2(module, _check_libpq),
    "uvloop": _watch_uvloop,
    **dict.fromkeys(
        addresses.REDIS,
        lambda module: addresses.watch_redis(module, _check_redis, _check_redis_socket),
    ),
}


# --- what pytest sees ---------------------------------------------------------------------------

_MARKERS = ("network", "llm")
_OUTPUT = "harness_refused"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        SETTING,
        "Hosts, host:port and sockets (or folders of them), besides the tests' own, to which tests may "
        "connect. Read from pyproject.toml alone.",
        type="linelist",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "network: may connect anywhere, by the proxy and with the certificates of the shell",
    )
    install(environment.current)
    if config.getoption("dist", "no") == "no":  # workers of pytest-xdist are watched by themselves
        _watch_children()
        os.environ[_FOUND] = os.pathsep.join(map(str, config.getini("pythonpath")))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _refused.clear()
    leaves = any(item.get_closest_marker(name) for name in _MARKERS)
    with (
        offline(not markers.needs_database(item)),
        _online(pytest.MonkeyPatch()) if leaves else nullcontext(),
    ):
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
            if isinstance(refusal, UnitTestConnectedError | AnotherServerError):
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
