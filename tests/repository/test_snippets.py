"""What the repository's own documents show is done: each command, each example, each diagram.

A block in a language, and a command, that no test knows fails here.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adoption.guide import GUIDE
from tests.conftest import Render
from tests.repository.reader import STEP, Block, Reader, blocks, commands, reading
from tests.support.machine import linux_only
from tests.support.project import Project
from tests.support.template import ROOT
from tests.support.tiers import quick, slow

CONCERNS = ["*.md"]

NAMES = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
DOCUMENTS = [
    path
    for path in (*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("**/*.md")))
    if path.exists()
]
# What the others say to do is done by other tests as well.
FIRST = [ROOT / "README.md", ROOT / "docs/testing.md", ROOT / "docs/adopting.md"]
REPEAT = [path for path in DOCUMENTS if path not in FIRST]
LANGUAGES = {"shell", "text", "python", "mermaid"}

# Of an output: what is another one each time.
PASSING = [(r"password \S+", "password …"), (r":[^:@/ ]+@", ":…@"), (r"(?<=:)\d{4,5}\b", "…")]


def titled(path: Path) -> str:
    """The id of a document."""
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=DOCUMENTS, ids=titled)
def document(request: pytest.FixtureRequest) -> str:
    """The text of each of them, in turn."""
    return read(request.param)


def read(path: Path) -> str:
    """A document without what is to be written into files: for that see test_contributing.py."""
    return STEP.sub("", path.read_text())


@pytest.fixture
def reader(
    shared: Path, tmp_path: Path, template: Path, versions: Path, python: Path
) -> Iterator[Reader]:
    """Somebody with a clone, who takes no port that a test waits for: see test_development.py."""
    with (
        (shared / "first-port").open("w") as users,
        reading(tmp_path / "reader", template, versions, python) as reader,
    ):
        fcntl.flock(users, fcntl.LOCK_SH)
        yield reader


def test_languages_are_known(document: str) -> None:
    assert {block.language for block in blocks(document)} <= LANGUAGES


@linux_only
@pytest.mark.parametrize(
    "document",
    [*quick(of=FIRST), *quick(of=REPEAT, others=slow)],
    indirect=True,
    ids=titled,
)
def test_commands_succeed(document: str, reader: Reader) -> None:
    """In the order of the document. What is shown as text is what the last of them printed."""
    for block in blocks(document):
        if block.language == "shell":
            reader.follow(block)
        elif block.language == "text":
            printed = iter(passing(reader.printed))
            missing = [line for line in passing(block.text) if line not in printed]
            assert not missing, reader.printed


def passing(text: str) -> list[str]:
    """Lines without what is another one each time."""
    for pattern, instead in PASSING:
        text = re.sub(pattern, instead, text)
    return text.splitlines()


@pytest.mark.parametrize("command", ["frobnicate", "make frobnicate", "uv add x", "make test FOO"])
def test_unknown_command_fails(command: str, reader: Reader) -> None:
    with pytest.raises(AssertionError, match=r"command not found|no test knows|No rule to make"):
        reader.follow(Block("shell", f"{command}\n"))


@pytest.mark.parametrize(
    ("command", "said"),
    {
        "make test ARGS=--frobnicate": "unrecognized arguments: --frobnicate",
        "make bench ARGS=--frobnicate": "unrecognized arguments: --frobnicate",
        "make test ARGS=tests/nowhere.py": "file or directory not found: tests/nowhere.py",
        "uvx copier frobnicate": "Unknown sub-command 'frobnicate'",
    }.items(),
)
def test_unknown_option_fails(command: str, said: str, reader: Reader) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        reader.follow(Block("shell", f"{command}\n"))


PRELUDE = """\
import asyncio
from functools import partial

import pytest
import pytest_asyncio
from sqlalchemy import select

from app.database import AsyncSessionLocal
from app.models import Customer


"""


# How many tests each document shows.
EXAMPLES = {"README.md": 2, "docs/testing.md": 2}


def test_examples_pass(project: Project) -> None:
    """The tests that documents show, with the imports that a reader adds."""
    files = []
    for number, path in enumerate(DOCUMENTS):
        examples = [block.text for block in blocks(read(path)) if block.language == "python"]
        assert all("def test_" in text for text in examples), f"{path}: no test knows what to do"
        if examples:
            files.append(f"tests/test_document_{number}.py")
            (project.path / files[-1]).write_text(PRELUDE + "\n\n".join(examples))
    project.pytest("--no-cov", *files, passed=sum(EXAMPLES.values()))


# Of Mermaid, what is used here: nodes, and arrows between two.
NODE = r"\w+(?:\[\(\"[^\"]+\"\)\]|\[\"[^\"]+\"\])?"
ARROW = re.compile(rf"    {NODE} -->(?:\|[^|\"]+\|)? {NODE}")


def test_diagrams_are_well_formed(document: str) -> None:
    for block in blocks(document):
        if block.language == "mermaid":
            first, *lines = block.text.splitlines()
            assert re.fullmatch("flowchart (LR|TD)", first)
            assert not [line for line in lines if not ARROW.fullmatch(line)]
            assert lines


# --- What is said beside the blocks ------------------------------------------------------------

CODE = re.compile(r"`([^`]+)`")
PROGRAMS = {"uvx", "copier", "python"}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]+))?\)")
FIGURE = re.compile(r"\b\d[\d.,]* ?(?:ms|s|seconds|min|minutes|times|MB|GB)\b")


def prose(text: str) -> str:
    """A document without its blocks."""
    return "".join(re.split(r"^```\w*\n.*?^```$", text, flags=re.MULTILINE | re.DOTALL))


def test_commands_in_sentences_are_those_of_blocks(document: str, rendered: Render) -> None:
    """Or targets of a Makefile."""
    service = rendered().path
    texts = [path.read_text() for path in (*DOCUMENTS, GUIDE, *service.glob("docs/*.md"))]
    shown = [line for text in texts for line in commands(blocks(text))]
    makefiles = "".join((folder / "Makefile").read_text() for folder in (ROOT, service))
    for code in CODE.findall(prose(document)):
        program, *words = code.split()
        if program == "make" and words:
            assert re.search(rf"^{words[0]}:", makefiles, re.MULTILINE), code
        elif program in PROGRAMS and words:
            plain = code.removesuffix("…").strip()
            assert any(plain in line for line in shown), code


def test_links_lead_somewhere(document: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.node.callspec.params["document"]
    for target, anchor in LINK.findall(document):
        there = path.parent / target
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_figures_name_the_command_that_made_them(document: str) -> None:
    """In the same section."""
    for section in re.split(r"^#+ ", document, flags=re.MULTILINE):
        if FIGURE.search(prose(section)):
            assert re.search(r"^make |`make ", section, re.MULTILINE), section
