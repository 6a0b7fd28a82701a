"""The pictures that README shows are what really runs: see recordings.py and published.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.published import BETWEEN, CHART, DOCUMENT
from tests.repository.reader import Reader, reading
from tests.repository.recordings import (
    FAILURE,
    SERVICE,
    SHOWN_TESTS,
    record_failure,
    record_service,
)
from tests.support.picture import BACKGROUND, COLOURS, terminal, text_of
from tests.support.project import Project, counted
from tests.support.template import ROOT
from tests.variants import DEFAULTS

CONCERNS = ["docs/images/*", "benchmarks/*", "template/tests/harness/plugin.py", "Makefile"]
AGAIN = "it is another one now: make recordings"


@pytest.fixture
def reader(tmp_path: Path, template: Path, python: Path) -> Iterator[Reader]:
    """Somebody with a clone of the template."""
    with reading(tmp_path / "reader", template, template, python) as reader:
        yield reader


def test_recording_of_make_service_counts_its_tests() -> None:
    """As many as test_own_suite.py counts."""
    there = counted("\n".join(text_of(SERVICE.read_text())))
    assert there == {"passed": DEFAULTS.passed, "skipped": DEFAULTS.skipped}, AGAIN


@pytest.mark.slow
def test_recording_of_make_service(reader: Reader) -> None:
    """All that it shows, but for the numbers, from a run of the three tests that it names."""
    there = text_of(SERVICE.read_text())
    clone = reader.place("in a clone")
    now = record_service(clone, {"PATH": reader.path}, " ".join(SHOWN_TESTS))
    assert shown(now, figures="0") == shown_lines(there, figures="0"), AGAIN


@pytest.mark.slow
def test_recording_of_a_test_that_fails(reader: Reader, project: Project) -> None:
    """All that it shows, but for how long it took."""
    now = record_failure(project.path, {"PATH": reader.path})
    assert shown(now) == shown_lines(text_of(FAILURE.read_text())), AGAIN


def shown(text: str, figures: str = "") -> list[str]:
    """What a recording of this text would show."""
    return shown_lines(text_of(terminal("", text)), figures)


def shown_lines(lines: list[str], figures: str = "") -> list[str]:
    """Lines without what is left out between them, and without what depends on the machine."""
    text = "\n".join(line for line in lines if line != "⋮")
    text = re.sub(r"\d+\.\d+ ?s\b(?: \(\d+:\d\d:\d\d\))?", "… s", text)
    text = re.sub(r"[=_-]{3,}", "---", text)
    if figures:  # none of three is skipped
        text = re.sub(r", \d+ skipped", "", text)
        text = re.sub(r"[\d.]+", figures, text)
    return re.sub(r"(?<=\[) +| +(?= )", "", text).splitlines()


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.svg")), ids=lambda path: path.name)
def test_pictures_can_be_read_anywhere(path: Path) -> None:
    """On a background of their own, by the machine's fonts; and some document shows them."""
    svg = path.read_text()
    assert f'fill="{BACKGROUND}"' in svg
    assert re.findall(r"https?://[^\"' ]+", svg) == ["http://www.w3.org/2000/svg"]
    used = [
        doc for doc in [ROOT / "README.md", *ROOT.glob("docs/*.md")] if path.name in doc.read_text()
    ]
    assert used


def test_terminal_draws_colours_and_cuts_long_lines() -> None:
    svg = terminal("a <title>", "\x1b[31m\x1b[1mred\x1b[0m <plain>\n\x1b[32m" + "x" * 101)
    assert text_of(svg) == ["red <plain>", "x" * 99 + "…"]
    assert f'<tspan fill="{COLOURS["31"]}" font-weight="bold">red</tspan> &lt;plain&gt;' in svg
    with pytest.raises(KeyError):
        terminal("", "\x1b[7mreversed\x1b[0m")


def test_chart_and_tables_are_of_one_run() -> None:
    """Nobody has typed them: both have the same ratios, and say by what they were made."""
    found = BETWEEN.search(DOCUMENT.read_text())
    assert found
    made = re.search(r"Made by make bench: Python [\d.]+, PostgreSQL [\d.]+, \d+ rounds", found[0])
    assert made
    title, *drawn, below = text_of(CHART.read_text())
    assert below == made[0]
    table = found[0].split("One more test, of ")[1].split("\n\n")[1]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert drawn == [cell for row in rows for cell in (row[0], row[3])]
    assert [row[0] for row in rows if row[3] == "1.00"] == [
        title.split(", with ")[1].split(" as ")[0]
    ]
