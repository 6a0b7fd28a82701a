"""Everything that decides what a golden database holds, as hashes: change one, and it is rebuilt."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks.integrity import sums
from ..errors import HarnessError
from ..layout import CONFTEST, ROOT
from ..recipe import Recipe, resolve
from . import databases
from .databases import Connection

if TYPE_CHECKING:
    from sqlalchemy import MetaData


@dataclass(frozen=True)
class Fingerprint:
    """The hash that names a golden database, and its parts, to tell what changed."""

    value: str
    parts: dict[str, str]

    def changes(self, before: dict[str, str]) -> list[str]:
        """Names of the parts that differ from those of another fingerprint."""
        return [
            name
            for name in sorted({*self.parts, *before})
            if self.parts.get(name) != before.get(name)
        ]


def fingerprint(connection: Connection, recipe: Recipe) -> Fingerprint:
    """Hash what the recipe, the project's files and the server bring to a golden database.

    Raises:
        HarnessError: a source or an extension of the recipe does not exist.
    """
    parts = {
        "the harness": _hash(sum_.encode() for sum_ in sums(Path(__file__).parents[1]).values()),
        "the server": _hash(_server(connection)),
        "the extensions": _hash(_extensions(connection, recipe.extensions)),
        "the recipe": _hash(_recipe(recipe)),
        "the models": _hash(statement.encode() for statement in ddl(recipe)),
        **{source: _hash(_files(ROOT, source)) for source in recipe.sources},
    }
    total = _hash(
        part for name, hash_ in sorted(parts.items()) for part in (name.encode(), hash_.encode())
    )
    return Fingerprint(total, parts)


def metadata(recipe: Recipe) -> list[MetaData]:
    """Each `MetaData` of the service, imported now."""
    return [resolve(name) for name in recipe.metadatas]


def ddl(recipe: Recipe) -> list[str]:
    """The statements that `create_all` would send to an empty database, sorted.

    A table's indexes come in no fixed order.
    """
    found = metadata(recipe)
    if not found:
        return []
    from sqlalchemy import create_mock_engine

    statements: list[str] = []

    def record(statement: Any, *_: Any, **__: Any) -> None:
        statements.append(str(statement.compile(dialect=engine.dialect)))

    engine = create_mock_engine("postgresql+psycopg://", record)
    for tables in found:
        tables.create_all(engine, checkfirst=False)
    return sorted(statements)


def _hash(pieces: Iterable[bytes]) -> str:
    """SHA-256 over length-prefixed pieces: no two lists of pieces run together."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(len(piece).to_bytes(8))
        total.update(piece)
    return total.hexdigest()


def _recipe(recipe: Recipe) -> list[bytes]:
    # The interpreter's own path is not what a command is about.
    commands = [[[w for w in c if w != sys.executable] for c in step] for step in recipe.steps]
    return [repr((recipe.metadata, sorted(recipe.seeded), commands)).encode()]


def _server(connection: Connection) -> list[bytes]:
    row = connection.execute(
        """
        SELECT current_setting('server_version'), current_user::text, datcollate, datctype, encoding::text
        FROM pg_database WHERE datname = 'template0'
        """
    ).fetchone()
    assert row is not None
    return [str(value).encode() for value in (*row, databases.settings_of_the_server(connection))]


def _extensions(connection: Connection, names: Iterable[str]) -> list[bytes]:
    rows = connection.execute("SELECT name, default_version FROM pg_available_extensions")
    found: dict[str, str] = dict(rows.fetchall())
    missing = [name for name in names if name not in found]
    if missing:
        raise HarnessError(
            f"The tests' server does not have the extension {', '.join(missing)}. Install it there "
            "(pgvector is packaged as postgresql-NN-pgvector), or unset TEST_DATABASE_URL to use the "
            "embedded server, which has it."
        )
    return [f"{name} {found[name]}".encode() for name in names]


def _files(root: Path, source: str) -> list[bytes]:
    """Relative paths and contents: of a file and what it imports, or of all files in a folder."""
    start = root / source
    if start.is_file():
        paths = sorted(with_imports(root, start)) if start.suffix == ".py" else [start]
        return [piece for path in paths for piece in _named(root, path)]
    if not start.is_dir():
        raise HarnessError(
            f"{source} does not exist, but is listed under `sources` in {CONFTEST}: "
            "correct the path, or take it out."
        )
    pieces: list[bytes] = []
    walked = set()
    for folder, subfolders, names in os.walk(start, followlinks=True):
        walked.add(os.path.realpath(folder))
        inner = [Path(folder, name) for name in sorted(subfolders) if name != "__pycache__"]
        # What is linked counts as well. A link may lead back.
        subfolders[:] = [path.name for path in inner if os.path.realpath(path) not in walked]
        for path in inner:
            if path.is_symlink():
                pieces += [os.fsencode(path.relative_to(root)), os.fsencode(os.readlink(path))]
        for path in (Path(folder, name) for name in sorted(names)):
            # No file: a link that leads nowhere, by which editors mark what is edited.
            if path.is_file():
                pieces += _named(root, path)
    return pieces


def _named(root: Path, path: Path) -> tuple[bytes, bytes]:
    return os.fsencode(path.relative_to(root).as_posix()), path.read_bytes()


def with_imports(root: Path, script: Path) -> set[Path]:
    """A script and all files of the project that its import statements reach, directly or not.

    What a seeder imports decides what it writes, and is easily forgotten in a list.
    """
    # Beside the script, where Python looks first, or wherever around it the import path begins.
    bases = [root / "src", *(f for f in script.parents if f.is_relative_to(root))]
    found: set[Path] = set()
    modules: set[tuple[str, ...]] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        imported = {*_imports(path.read_bytes(), path.relative_to(root).parts[:-1])} - modules
        modules |= imported
        for module in imported:
            waiting += _module_files(bases, module)
    return found


@functools.cache  # scripts share most of what they import, and parsing is slow
def _imports(source: bytes, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The dotted names, split, of the modules that a file of a package may import."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # which whoever runs it will explain
        return []
    return [module for node in ast.walk(tree) for module in _imported(node, package)]


def _imported(node: ast.AST, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Those of one statement."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else ()
        module = (*start, *(node.module.split(".") if node.module else ()))
        return [(*module, alias.name) for alias in node.names]
    return []


def _module_files(bases: Iterable[Path], module: tuple[str, ...]) -> list[Path]:
    """The files of a module and of the packages around it, as far as they are the project's."""
    found = []
    for base in bases:
        for length in range(1, len(module) + 1):
            stem = base.joinpath(*module[:length])
            paths = [
                path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()
            ]
            if not paths and not stem.is_dir():
                break
            found += paths
    return found
