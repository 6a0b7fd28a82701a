"""Servers that listen on a port of this machine, and the one of the tests' where it has to.

A Unix socket needs neither port nor password. But there are services that put their URL together of
parts, and libraries that read no URL with a socket in it: for these the embedded server listens on
127.0.0.1 as well. Settings are made before it is started, so where that is, is written down first:
a port of the project's own, and a password that its user alone can read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..errors import HarnessError
from ..files import write
from .locks import FileLock

HOST = "127.0.0.1"
TRIES = 20

WITHOUT_TLS = {"PGSSLMODE": "disable"}
"""For who connects to a Postgres of ours there: otherwise drivers read the user's own certificate first, whose
key may ask for a password."""

_FIRST = 24100
_NOTE = "loopback"

Started = TypeVar("Started")


@dataclass(frozen=True)
class Loopback:
    """Where the server of a folder listens besides its socket, and what lets one in there."""

    port: int
    password: str = field(repr=False)


def known(home: Path) -> Loopback | None:
    """Where the server of a folder is to listen; None if that is not written down, or not as we do."""
    try:
        port, password = (home / _NOTE).read_text(encoding="ascii").split()
        return Loopback(int(port), password)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def choose(home: Path) -> Loopback:
    """Let the server of a folder, which is there, listen on loopback: where it did, while that is free.

    Raises:
        HarnessError: all ports that it may have are taken.
    """
    lock = FileLock(home / f"{_NOTE}.lock")
    lock.acquire()
    try:
        before = known(home)
        if before and (is_free(before.port) or _serves(home, before.port)):
            return before
        first = first_port(home, _FIRST)
        port = next(filter(is_free, range(first, first + TRIES)), None)
        if port is None:
            raise HarnessError(_all_taken(first))
        password = before.password if before else secrets.token_urlsafe(24)
        write(home / _NOTE, f"{port} {password}\n".encode())
        return Loopback(port, password)
    finally:
        lock.release()


def _serves(home: Path, port: int) -> bool:
    """Whether it is this folder's own server that has the port. Postgres notes both when it starts."""
    try:
        lines = (home / "data/postmaster.pid").read_text(encoding="utf-8").splitlines()
        os.kill(int(lines[0]), 0)
        return int(lines[3]) == port
    except PermissionError:  # it runs as another user
        return int(lines[3]) == port
    except (OSError, ValueError, IndexError):
        return False


def first_port(folder: Path, least: int) -> int:
    """The port of a server that keeps its data in `folder`: always the same, seldom another's.

    One of the 4,000 from `least` on, none of which systems give to clients.
    """
    return least + int(hashlib.sha256(os.fsencode(folder)).hexdigest(), 16) % 4000


class PortTakenError(HarnessError):
    """Raised when somebody else was quicker to listen on a port that was free."""


def on_a_free_port(
    first: int, start: Callable[[int], Started], *, tries: int = TRIES, host: str = HOST
) -> Started:
    """Start a server on the first port that nobody else has, of so many from `first` on.

    Raises:
        HarnessError: all are taken, or it does not start, which is not the port's fault.
    """
    for port in range(first, first + tries):
        if is_free(port, host):
            try:
                return start(port)
            except PortTakenError:  # by somebody who may be gone by now
                continue
            except HarnessError:
                if is_free(port, host):
                    raise
    raise HarnessError(
        _all_taken(first)
        if tries > 1
        else f"Port {first} is taken: name another one, or none and make run finds one."
    )


def _all_taken(first: int) -> str:
    return f"All ports from {first} to {first + TRIES - 1} are taken: end what uses one of them."


def is_free(port: int, host: str = HOST) -> bool:
    """Whether nobody else listens there.

    Raises:
        HarnessError: no server of ours can: the address is not this machine's, or the port is root's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                return False
            raise HarnessError(f"No server can listen on {host}, port {port}: {error}") from error
    return True
