"""What a process has to tell at the end of its run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Summary:
    """For the closing lines; workers send theirs to the process that prints.

    Attributes:
        clones: that were made.
        put_back: databases, after tests that changed them.
        replaced: databases, by a clone.
        seconds: that this took.
        leaks: sessions that tests left open.
        kept: databases of tests that failed, and how to open them.
        left: what is on the server still.
        problems: for which the run fails.
    """

    clones: int = 0
    put_back: int = 0
    replaced: int = 0
    seconds: float = 0.0
    leaks: int = 0
    kept: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Add what another one tells."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
