"""Files and folders that nobody else may read, or write, whatever the umask."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def private(folder: Path) -> Path:
    """Make a folder, and those around it, that nobody else may enter. What is there stays as it is."""
    for missing in [f for f in (folder, *folder.parents) if not f.exists()][::-1]:
        with suppress(FileExistsError):  # another process was quicker
            missing.mkdir(mode=0o700)
            missing.chmod(0o700)
    folder.mkdir(exist_ok=True)  # fails where that is a file
    return folder


def write(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Put a file there, whole or not at all, that nobody else may read or write, whatever the umask.

    Args:
        path: where.
        content: of it.
        durable: it outlives a crash of the machine, too.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)  # its rights would stay
    with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
    if durable:
        sync(path.parent)


def sync(folder: Path) -> None:
    """Let the names in a folder outlive the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
