"""What a service tells the harness about itself. Declared in `tests/conftest.py`."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import HarnessError
from .layout import CONFTEST


@dataclass(frozen=True)
class Together:
    """Commands that run at the same time, see `together()`."""

    commands: tuple[Sequence[str], ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the golden database of this service is made, and what it depends on.

    Objects of the service are named, `"package.module:object"`, not imported: a run of unit tests
    must not pay for them.

    Attributes:
        session: what makes a session of the service for `db_session`: a sessionmaker of any kind, or a
            function that returns one or a session. None where no test asks for it.
        metadata: the `MetaData` for `create_all`, or several, in their order; None when `commands` make
            the schema, for example by `alembic upgrade head`.
        extensions: `CREATE EXTENSION IF NOT EXISTS`, in this order, before the schema.
        commands: run one after the other when the schema is there, those in `together()` at the
            same time: the seeder and its kin. Each gets the environment, in which the variables that
            `prepare()` was told of name the database that is built; a
            status other than 0 ends the run.
        sources: files and folders, from the project's root, that decide what the golden database
            holds. A change in one of them rebuilds it; the models' DDL always counts.
        seeded: tables that must have rows when the commands are done; with their schema, `stock.items`,
            where that is not `public`.
        timeout: seconds that one command may take.
        engine: not used any more. Recipes of version 1 name it.
    """

    metadata: str | Sequence[str] | None
    session: str | None = None
    engine: str | None = None
    extensions: Sequence[str] = ()
    commands: Sequence[Sequence[str] | Together] = ()
    sources: Sequence[str] = ()
    seeded: Sequence[str] = ()
    timeout: float = 300

    def __post_init__(self) -> None:
        """Raises HarnessError where a text, or nothing, is in the place of a list."""
        lists = [(n, getattr(self, n)) for n in ("extensions", "commands", "sources", "seeded")]
        if all(_is_list(value) for _, value in lists):
            lists = [("commands", words) for step in self.steps for words in step]
        for name, value in lists:
            if not _is_list(value):
                raise HarnessError(
                    f"{value!r} in the {name} of the recipe, in {CONFTEST}, is no list."
                )

    @property
    def metadatas(self) -> Sequence[str]:
        """Their names, one or several."""
        return (self.metadata,) if isinstance(self.metadata, str) else self.metadata or ()

    @property
    def steps(self) -> list[Sequence[Sequence[str]]]:
        """The commands, those that run at the same time as one step."""
        return [c.commands if isinstance(c, Together) else (c,) for c in self.commands]


def _is_list(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str)


def module(name: str, *arguments: str) -> list[str]:
    """The command `python -m name …` with this interpreter."""
    return [sys.executable, "-m", name, *arguments]


def script(path: str, *arguments: str) -> list[str]:
    """The command `python path …` with this interpreter."""
    return [sys.executable, path, *arguments]


def together(*commands: Sequence[str]) -> Together:
    """Commands that don't need each other's results, as one of a recipe's: they share the wait."""
    return Together(commands)


def resolve(name: str) -> Any:
    """The object of the service that a recipe names, imported now.

    Raises:
        HarnessError: there is none, or its module can't be imported.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise HarnessError(f"{name}, which {CONFTEST} names, can't be imported: {error}") from error
