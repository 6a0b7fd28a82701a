"""Where a socket is about to connect, and whether that is this machine or an allowed host.

Imports nothing of the harness: `children/sitecustomize.py` loads this file alone, before any program.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing is half of what this costs
if TYPE_CHECKING:
    from collections.abc import Callable, Set
    from typing import Any

CONNECTS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
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
    return any(_is_here(h) or _is_allowed(h, port, allowed) for h in (host, *_names.get(host, ())))


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


def _inet() -> tuple[int, int]:
    import _socket  # there already, where somebody connects

    return _socket.AF_INET, _socket.AF_INET6


def _is_here(host: str) -> bool:
    import _socket

    host = host.partition("%")[0].rstrip(".").lower()
    if host in ("", "localhost", "ip6-localhost", "ip6-loopback", _socket.gethostname().lower()):
        return True
    address = _numeric(host)
    if address is None:
        return host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


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
