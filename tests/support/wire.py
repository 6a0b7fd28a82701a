"""What may stand between the tests and a Postgres: proxies that speak its protocol, and silence."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_REQUESTS_FOR_ENCRYPTION = (80877103, 80877104)


@contextmanager
def listening(
    serve: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0
) -> Iterator[int]:
    """Listen, and serve each connection in a thread of its own. Gives the port."""
    with socket.create_server((host, port)) as server:

        def accept() -> None:
            with suppress(OSError):  # closed, at the end
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=attend, args=(client,), daemon=True).start()

        def attend(client: socket.socket) -> None:
            with client, suppress(OSError, EOFError):
                serve(client)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)


def own_address() -> str:
    """An address of this machine that others could reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback's")
        return str(probe.getsockname()[0])


@contextmanager
def mute() -> Iterator[int]:
    """Something that accepts connections and never says a word."""
    with listening(lambda client: _drain(client)) as port:
        yield port


@contextmanager
def pooling(backend: int) -> Iterator[int]:
    """A pooler in transaction mode: a client's next transaction runs in another session."""

    def serve(client: socket.socket) -> None:
        startup = _startup(client)
        with (
            socket.create_connection(("127.0.0.1", backend)) as first,
            socket.create_connection(("127.0.0.1", backend)) as second,
        ):
            first.sendall(startup)
            second.sendall(startup)
            for kind, message in _until_ready(first):
                client.sendall(kind + message)
            list(_until_ready(second))
            current, other = first, second
            while True:
                kind, message = _message(client)
                current.sendall(kind + message)
                if kind not in (b"Q", b"S"):
                    continue
                for kind, message in _until_ready(current):
                    client.sendall(kind + message)
                if message.endswith(b"I"):  # no transaction is open
                    current, other = other, current

    with listening(serve) as port:
        yield port


@contextmanager
def rewriting(backend: int, old: bytes, new: bytes) -> Iterator[int]:
    """A server that says `new` where the real one says `old`, which is as long."""
    assert len(old) == len(new)

    def serve(client: socket.socket) -> None:
        startup = _startup(client)
        with socket.create_connection(("127.0.0.1", backend)) as server:
            server.sendall(startup)
            while True:
                for kind, message in _until_ready(server):
                    client.sendall((kind + message).replace(old, new))
                kind, message = b"", b""
                while kind not in (b"Q", b"S"):
                    kind, message = _message(client)
                    server.sendall(kind + message)

    with listening(serve) as port:
        yield port


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A new certificate of localhost, and its key. Skips the test where there is no openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", made),
        ],
        capture_output=True,
        check=True,
    )
    return made, key


@contextmanager
def encrypting(backend: int, certificate: Path, key: Path, came: list[int]) -> Iterator[int]:
    """A server that insists on TLS; notes who came by it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    def serve(client: socket.socket) -> None:
        packet = _exactly(client, 8)
        if int.from_bytes(packet[4:]) != _REQUESTS_FOR_ENCRYPTION[0]:
            return
        client.sendall(b"S")
        with (
            context.wrap_socket(client, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", backend)) as server,
        ):
            came.append(secure.fileno())
            answers = threading.Thread(target=_pass_on, args=(server, secure), daemon=True)
            answers.start()
            _pass_on(secure, server)
            answers.join()

    with listening(serve) as port:
        yield port


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _startup(client: socket.socket) -> bytes:
    """The packet that begins a connection; encryption is declined."""
    while True:
        length = _exactly(client, 4)
        packet = length + _exactly(client, int.from_bytes(length) - 4)
        if int.from_bytes(packet[4:8]) not in _REQUESTS_FOR_ENCRYPTION:
            return packet
        client.sendall(b"N")


def _until_ready(server: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """What a server says until it waits for the next command."""
    kind = b""
    while kind != b"Z":
        kind, message = _message(server)
        yield kind, message


def _message(peer: socket.socket) -> tuple[bytes, bytes]:
    kind, length = _exactly(peer, 1), _exactly(peer, 4)
    return kind, length + _exactly(peer, int.from_bytes(length) - 4)


def _exactly(peer: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = peer.recv(count - len(received))
        if not part:
            raise EOFError
        received += part
    return received


def _drain(peer: socket.socket) -> None:
    while peer.recv(1024):
        pass
