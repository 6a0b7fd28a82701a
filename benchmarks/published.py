"""How figures are shown: as tables, printed or in a document, and as a chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tests.support.picture import COLOURS, FAINT, LINE, MARGIN, picture
from tests.support.template import ROOT

CHART = ROOT / "docs" / "images" / "benchmark.svg"
DOCUMENT = ROOT / "docs" / "testing.md"
BETWEEN = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
LABELS, BARS, FIGURES = 290, 440, 70
"""The widths of a chart's columns."""


@dataclass(frozen=True)
class Table:
    """Figures of one kind. The first column says of what."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """For a terminal."""
        columns = list(zip(*([self.heads, *self.rows]), strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])],
            ).rstrip()
            for row in [self.heads, *self.rows]
        ]
        return "\n".join([f"{self.title}:", "", *(f"  {line}" for line in lines)])

    def markdown(self) -> str:
        """For a document."""
        rule = ["---", *["--:"] * (len(self.heads) - 1)]
        rows = [self.heads, rule, *self.rows]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(row)} |" for row in rows)])


def chart(title: str, bars: Sequence[tuple[str, float, bool]], made: str) -> str:
    """Draw numbers as bars, each with its label, some of them marked. `made` says how they came."""
    scale = BARS / max(value for _, value, _ in bars)
    rows = [f'<text x="{MARGIN}" y="{MARGIN + 14}" font-weight="bold">{escape(title)}</text>']
    top = MARGIN + LINE
    for label, value, marked in bars:
        top += 26
        width = value * scale
        rows += [
            f'<text x="{MARGIN}" y="{top}">{escape(label)}</text>',
            f'<rect x="{MARGIN + LABELS}" y="{top - 13}" width="{width:.1f}" height="17" rx="2" '
            f'fill="{COLOURS["32" if marked else "90"]}"/>',
            f'<text x="{MARGIN + LABELS + width + 8:.1f}" y="{top}">{value:.2f}</text>',
        ]
    top += 34
    rows.append(f'<text x="{MARGIN}" y="{top}" fill="{FAINT}">{escape(made)}</text>')
    return picture(title, 2 * MARGIN + LABELS + BARS + FIGURES, top + MARGIN, FONT, rows)


def written(document: str, tables: Sequence[Table], made: str) -> str:
    """A document with these tables between its two marks."""
    body = "\n\n".join([f"{made}.", *(table.markdown() for table in tables)])
    text, count = BETWEEN.subn(lambda _: f"\n{body}\n\n", document)
    assert count == 1, "there are no marks for the figures"
    return text
