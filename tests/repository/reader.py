"""A reader of the repository's documents, who does what they say.

The reader's machine has the commands of COMMANDS and no others, so a document can't name one that
no test knows. What takes minutes is done in part: of pytest's runs the tests are collected, by the
very options that are given, and `make run` is ended once it is ready.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.command import run
from tests.support.copier import copier
from tests.support.embedded import remove_clusters
from tests.support.machine import MARK, kill, new_mark, started_with
from tests.support.releases import commit
from tests.support.template import FUTURE as PRESENT
from tests.support.template import ROOT

# The template's address in documents.
ADDRESS = "gh:OWNER/copier-async-service"

# What is to be written: into a new file, or beside a text that is there.
STEP = re.compile(
    r"(?:New, `(?P<new>[^`]+)`"
    r"|`(?P<file>[^`]+)`, (?P<side>above|below) (?P<tick>`+)(?P<text>.+?)(?P=tick))"
    r"\n\n```\w+\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
BLOCK = re.compile(
    r"^(?:<!-- (?P<place>in a \w+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

MAKE = """\
OPTIONS='import sys; from benchmarks.isolation import parsed; parsed(sys.argv[1:])'
case "${words[0]:-help}" in
  help | service | test | test-faults | test-updates | psql | reset) exec "$make" -s "$@" ;;
  run)
    set -m  # a process group of its own, as a shell gives it
    log=$(mktemp)
    "$make" -s "$@" > "$log" 2>&1 &
    until grep -q '^data ' "$log" || ! kill -0 $! 2> "$log.gone"; do sleep 0.1; done
    kill -INT -- -$! || true  # Ctrl-C
    wait $! || true
    cat "$log"
    grep -q '^data ' "$log"
    ;;
  # What these do takes minutes, or a release that is ready.
  check | format | recordings | release) "$make" -n "$@" ;;
  bench)
    "$make" -n "$@"
    for word in "$@"; do case $word in ARGS=*) ARGS=${word#ARGS=} ;; esac; done
    exec "$own" -c "$OPTIONS" ${ARGS:-}
    ;;
  *) echo "no test knows how to run: make $*" >&2; exit 1 ;;
esac
"""

# Of the command line, without options and assignments.
WORDS = """\
words=()
for word in "$@"; do case $word in -* | *=*) ;; *) words+=("$word") ;; esac; done
"""

# With "$own", the Python of these tests, "$services", that of services, and WORDS.
COMMANDS = {
    "git": 'exec "$git" "$@"',
    "make": MAKE,
    "python": 'exec "$services" "$@"',
    # Asks nothing: it has nobody to ask.
    "uvx": """\
[ "${words[0]}" = copier ] || { echo "no test knows how to run: uvx $*" >&2; exit 1; }
case "${words[1]:-}" in copy | update) more=--defaults ;; *) more= ;; esac
exec "$own" -m copier "${words[1]}" $more "${@:3}"
""",
    # As it would, in an environment that is there.
    "uv": """\
export UV_NO_SYNC=1 UV_PROJECT_ENVIRONMENT
[ -e copier.yml ] && python=$own || python=$services
UV_PROJECT_ENVIRONMENT=${python%/bin/*}
case "$1 $2" in
  "tool run") exec "$own" -m "${@:5}" ;;  # --from …
  "run "*) exec "$uv" "$@" ;;
  *) echo "no test knows how to run: uv $*" >&2; exit 1 ;;
esac
""",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: its language, and where its commands are meant to be run."""

    language: str
    text: str
    place: str = "in a clone"


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document.

    Raises:
        AssertionError: one is written in a way that is not seen here.
    """
    found = [
        Block(block["language"], block["text"], block["place"] or Block.place)
        for block in BLOCK.finditer(text)
    ]
    assert len(FENCE.findall(text)) == 2 * len(found), "each fence begins its line, with ```"
    return found


def commands(blocks: list[Block]) -> list[str]:
    """The lines of shell blocks, without what is said of them."""
    lines = [b.text.splitlines() for b in blocks if b.language == "shell"]
    return [re.sub(r" +# .*", "", line) for some in lines for line in some if line.strip()]


@dataclass
class Reader:
    """Somebody with a clone of the template, and what they need.

    Attributes:
        folder: in which all of it is.
        template: where the template is had from.
        versions: the same, with one that is newer.
        python: that of rendered services.
        printed: what the last commands printed.
    """

    folder: Path
    template: Path
    versions: Path
    python: Path
    printed: str = ""
    mark: str = field(default_factory=new_mark)

    def __post_init__(self) -> None:
        self.bin, inner = self.folder / "bin", self.folder / "inner"
        self.path = f"{inner}:{os.environ['PATH']}"
        """Where what the commands start finds programs: uv is the reader's there, too."""
        real = {name: shutil.which(name) or "" for name in ("make", "git")}
        real |= {"uv": os.environ["UV"], "own": sys.executable, "services": str(self.python)}
        found = "".join(f"{name}={shlex.quote(where)}\n" for name, where in real.items())
        found += f"PATH={shlex.quote(self.path)}\n"
        for name, script in COMMANDS.items():
            for folder in (self.bin, inner) if name == "uv" else (self.bin,):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(
                    f"#!/bin/bash\nset -euo pipefail\n{found}{WORDS}{script}"
                )
                (folder / name).chmod(0o755)

    def place(self, name: str) -> Path:
        """A folder in which commands are run, made when it is first asked for."""
        folder = self.folder / "copier-async-service" if name == "in a clone" else self._at(name)
        if not folder.exists():
            if name == "in a clone":
                run("git", "clone", "--quiet", self.template, folder, cwd=self.folder)
            elif name == "in a service":
                options = ("--defaults", "--quiet", "-r", PRESENT)
                copier("copy", *options, self.versions, folder, cwd=self.folder)
            elif name == "in a project":
                shutil.copytree(ROOT / "tests/adoption/services/clinic", folder)
                shutil.rmtree(folder / "wired")
            else:
                raise AssertionError(f"no test knows where this is: {name}")
            if name != "in a clone":
                run("git", "init", "--quiet", cwd=folder)
                commit(folder, "Begin")
        return folder

    def _at(self, name: str) -> Path:
        return self.folder / name.replace(" ", "-")

    def follow(self, block: Block) -> None:
        """Run the commands of a block, which must all succeed."""
        source = self.versions if block.place == "in a service" else self.template
        env = {
            "PATH": str(self.bin),
            "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} --collect-only -q",
            MARK: self.mark,
        }
        script = block.text.replace(ADDRESS, str(source))
        bash = shutil.which("bash") or "bash"
        place = self.place(block.place)
        done = run(bash, "-euo", "pipefail", "-c", script, cwd=place, env=env, timeout=300)
        self.printed = done.output.replace(f"{self.folder}/", "")


@contextmanager
def reading(folder: Path, template: Path, versions: Path, python: Path) -> Iterator[Reader]:
    """A reader, of whom nothing is left at the end."""
    reader = Reader(folder, template, versions, python)
    try:
        yield reader
    finally:
        kill(started_with(reader.mark))
        remove_clusters(folder)
