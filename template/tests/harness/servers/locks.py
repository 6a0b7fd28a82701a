"""Kernel file locks: gone with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import HarnessError
from ..waiting import polls

_POLL = 0.02


class FileLock:
    """An advisory `flock` on a file, exclusive or shared. The file stays when it is released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free; True if it is held now."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not self._is_at_path():  # removed with its folder while we waited
            self.release()
            return False
        if not shared:
            os.truncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        return True

    def acquire(self, *, shared: bool = False, timeout: float = 60) -> None:
        """Take the lock, waiting for at most `timeout` seconds.

        Raises:
            HarnessError: when somebody else holds it for longer; names the last exclusive holder.
        """
        for _ in polls(timeout, _POLL):
            if self.try_acquire(shared=shared):
                return
        holder = self.path.read_text(encoding="utf-8") or "unknown"
        self.release()
        raise HarnessError(
            f"Waited {timeout:.0f} s for {self.path}, held by process {holder}. "
            "If that process hangs, stop it and run again."
        )

    def _is_at_path(self) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
