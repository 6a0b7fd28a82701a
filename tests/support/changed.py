"""`--changed`: the suites that a change concerns.

Each suite, which is a file `test_*.py`, says in `CONCERNS` which files of the repository it is
about, as patterns. It is also about itself and the modules of these tests that it imports.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path

TESTS = "tests"


@dataclass(frozen=True)
class Suite:
    """A file of tests, by its path from the root of the repository."""

    root: Path
    name: str

    @cached_property
    def concerns(self) -> list[str]:
        """Its patterns. In them `*` stands for any characters, `/` among them."""
        for node in ast.parse((self.root / self.name).read_text()).body:
            match node:
                case ast.Assign(targets=[ast.Name(id="CONCERNS")], value=value):
                    patterns: list[str] = ast.literal_eval(value)
                    return patterns
        return []

    @cached_property
    def modules(self) -> set[str]:
        """Itself and what it imports, directly or not, of these tests.

        Not what `conftest.py` imports in its turn: that would be nearly all.
        """
        found: set[str] = set()
        waiting = [self.name]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if name != f"{TESTS}/conftest.py":
                    waiting += _imported(self.root, name)
        return found

    def is_concerned(self, file: str) -> bool:
        """Whether a change of this file may change what the suite finds."""
        if any(fnmatchcase(file, pattern) for pattern in self.concerns):
            return True
        return file.startswith(f"{TESTS}/") and file in self.modules


def suites(root: Path) -> list[Suite]:
    """All of them."""
    names = (path.relative_to(root).as_posix() for path in (root / TESTS).glob("*/test_*.py"))
    return [Suite(root, name) for name in sorted(names)]


@dataclass(frozen=True)
class Change:
    """What was changed since a commit, and the suites that this concerns."""

    since: str
    files: list[str]
    suites: list[str]
    others: int

    def told(self) -> list[str]:
        """Lines for the beginning of a run."""
        return [
            f"changed since {self.since}:",
            *(f"    {name}" for name in self.files),
            "run for this, on one variant each:",
            *(f"    {name}" for name in self.suites),
            f"left out: thorough tests, and {self.others} other files. Before you push: make test",
        ]


def change(root: Path, since: str | None = None) -> Change:
    """The files of a checkout that differ from a commit, and the suites that they concern.

    Without a commit it is the last one; where nothing differs from that, the one before.

    Raises:
        ValueError: there is no such commit.
    """
    files = _changed(root, since or "HEAD")
    if not since and not files and _is_commit(root, "HEAD~1"):
        since, files = "HEAD~1", _changed(root, "HEAD~1")
    all_ = suites(root)
    concerned = [s.name for s in all_ if any(s.is_concerned(file) for file in files)]
    return Change(since or "HEAD", files, concerned, len(all_) - len(concerned))


def first_of_each(
    parameters: Iterable[tuple[object, dict[str, object]]], names: Iterable[str]
) -> Iterator[bool]:
    """Of tests with their parameters, which to keep so that each runs for one variant.

    Of those that differ in nothing but a parameter whose value is one of `names`, the first.
    """
    known, seen = set(names), set()
    for test, values in parameters:
        rest = tuple(
            (k, "any" if isinstance(v, str) and v in known else repr(v))
            for k, v in sorted(values.items())
        )
        yield (test, rest) not in seen
        seen.add((test, rest))


def _changed(root: Path, since: str) -> list[str]:
    if not _is_commit(root, since):
        raise ValueError(f"{since} is no commit of this repository")
    differ = _git(root, "diff", "--name-only", "--no-renames", "-z", since, "--")
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return sorted(name for name in (differ + new).split("\0") if name)


def _is_commit(root: Path, name: str) -> bool:
    command = ["git", "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}"]
    return not subprocess.run(command, cwd=root, capture_output=True, check=False).returncode


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def _imported(root: Path, name: str) -> Iterator[str]:
    """The modules of these tests that one of them imports."""
    for module in _imports((root / name).read_text()):
        path = f"{module.replace('.', '/')}.py"
        if module.startswith(f"{TESTS}.") and (root / path).is_file():
            yield path


@cache
def _imports(text: str) -> list[str]:
    """Whatever a module imports, with dots; of `from a import b` both `a` and `a.b`."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str(module), names=aliases):
                found += [module, *(f"{module}.{alias.name}" for alias in aliases)]
            case ast.Import(names=aliases):
                found += [alias.name for alias in aliases]
    return found
