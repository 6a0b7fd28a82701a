"""What xdist workers share: something costly is made by whichever comes first."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock named for `path` against the other workers of this run."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def until_the_last(path: Path, leave: Callable[[], None]) -> Iterator[None]:
    """Call `leave()` at the end, in the last of the workers that are in this block."""
    with path.open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leave()


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return `path`, having called `make(path)` if no worker of this run has done so successfully.

    The others wait. A `make` that raised leaves nothing, so that each test shows the same cause.
    """
    done = path.with_name(f"{path.name}.done")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            done.touch()
    return path
