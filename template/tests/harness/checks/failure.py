"""Why a run has no database: found out by one of its workers, known to all, tried once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..environment import Environment
from ..errors import HarnessError
from ..files import private, write


def recall(environment: Environment) -> None:
    """Fail as another worker of this run did, instead of trying the same again.

    Raises:
        HarnessError: there was one; with its words.
    """
    with suppress(OSError):
        raise HarnessError(_note(environment).read_text(encoding="utf-8"))


def note(environment: Environment, error: HarnessError) -> None:
    """Let the run's other workers know."""
    with suppress(OSError):  # they find out by themselves
        private(environment.home)
        write(_note(environment), str(error).encode(errors="replace"))


def forget(environment: Environment) -> None:
    """The end of the run: no worker will ask any more."""
    with suppress(OSError):
        _note(environment).unlink(missing_ok=True)


def _note(environment: Environment) -> Path:
    return environment.home / f"failed-{environment.run}"
