"""Whether the files of the harness are as the template made them: an update replaces them."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"
"""The file of hashes, as `sha256sum` writes it."""


def sums(folder: Path) -> dict[str, str]:
    """The hash of each Python and TOML file below a folder, by its path. Line ends are git's business.

    What editors and file managers leave about does not count.
    """
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes().replace(b"\r\n", b"\n")
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".toml")
    }


def edited(folder: Path) -> list[str]:
    """Paths of the files that were changed, added or removed since the template made them."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return [SUMS]
    made = {name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}
    found = sums(folder)
    return sorted(name for name in made.keys() | found if made.get(name) != found.get(name))
