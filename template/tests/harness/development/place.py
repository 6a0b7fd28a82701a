"""The folder `.dev/`, where all of it is kept.

    .dev/
      lock          held while `make run` runs
      secrets.json  passwords, made once
      env           what `make run` gave the service, for commands beside it
      postgres/     the data, and the server's log
      valkey/       the data
      uvicorn       the number of its process

In it the service itself keeps what it needs in development alone. The folder is its owner's alone.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from ..environment import of_file, spellings
from ..errors import HarnessError
from ..files import private, write
from ..layout import ROOT
from ..servers.locks import FileLock

DEV = ROOT / ".dev"


class Place:
    """The folder of this project, made when it is missing."""

    def __init__(self, path: Path = DEV) -> None:
        """Make the folder.

        Raises:
            HarnessError: it is another user's.
        """
        self.path = path
        private(path)
        owner = path.stat().st_uid
        if owner != os.geteuid():
            raise HarnessError(
                f"{path} belongs to user {owner}, and you are {os.geteuid()}. Run as that user, or remove "
                "it with all that is stored there."
            )
        path.chmod(0o700)
        self._lock = FileLock(path / "lock")
        self._secrets = path / "secrets.json"

    def take(self) -> None:
        """Be the one who uses it, until `leave()` or the end of this process.

        Raises:
            HarnessError: somebody else is.
        """
        if not self._lock.try_acquire():
            holder = self._lock.path.read_text(encoding="ascii") or "unknown"
            raise HarnessError(
                f"This project runs already, as process {holder}: end that one first."
            )

    def leave(self) -> None:
        """Let others take it."""
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()

    def secret(self, name: str, size: int = 36) -> str:
        """The secret of this name: made, of so many bytes, when it is first asked for."""
        try:
            known: dict[str, str] = json.loads(self._secrets.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = {}
        except ValueError as error:
            raise HarnessError(
                f"{self._secrets} can't be read: {error}. Without it, nobody gets at the data beside it."
            ) from error
        if name not in known:
            known[name] = secrets.token_urlsafe(size)
            write(self._secrets, json.dumps(known, indent=2).encode(), durable=True)
        return known[name]

    def tell(self, variables: Mapping[str, str]) -> None:
        """Write down the variables of the service, for commands that are run beside it."""
        lines = [f"{name}={value}\n" for name, value in variables.items()]
        text = "# Made by `make run`. Settings of yours go to .env.\n" + "".join(lines)
        write(self.path / "env", text.encode(), durable=True)


def given(variable: str) -> tuple[str, str] | None:
    """The value that the user has set for a variable of the service, and where; None if not set."""
    for values, where in ((os.environ, "the environment"), (of_file(".env"), ".env")):
        for name in reversed(spellings(variable, values)):
            if value := values[name]:
                return value, where
    return None
