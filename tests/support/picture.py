"""Text in colours, as a terminal shows it, drawn as an SVG that a code host can show."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape

# What a terminal's codes mean here: on a background of its own, to be read on any page.
COLOURS = {
    "31": "#ff7b72",
    "32": "#7ee787",
    "33": "#e3b341",
    "34": "#79c0ff",
    "35": "#d2a8ff",
    "36": "#76e3ea",
    "90": "#8b949e",
    "92": "#7ee787",
    "93": "#e3b341",
    "94": "#79c0ff",
    "95": "#d2a8ff",
    "96": "#76e3ea",
}
BACKGROUND, BORDER, INK, FAINT = "#0d1117", "#30363d", "#e6edf3", COLOURS["90"]
MONOSPACED = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"

CODE = re.compile(r"\x1b\[([\d;]*)m")
COLUMNS = 100
WIDTH, LINE, MARGIN, SIZE = 7.9, 18, 20, 13


def terminal(title: str, text: str) -> str:
    """Draw lines with a terminal's codes for colours. `title` is for those who can't see them.

    What is longer than a line of COLUMNS is cut, and ends with "…".

    Raises:
        KeyError: there is a code that has no meaning here.
    """
    lines = text.splitlines()
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + LINE * number + SIZE}" xml:space="preserve">'
        f"{''.join(_spans(line))}</text>"
        for number, line in enumerate(lines)
    ]
    width = round(COLUMNS * WIDTH) + 2 * MARGIN
    return picture(title, width, len(lines) * LINE + 2 * MARGIN, MONOSPACED, rows)


def picture(title: str, width: int, height: int, font: str, rows: list[str]) -> str:
    """An SVG of elements on the background."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="{font}" '
        f'font-size="{SIZE}" fill="{INK}">'
    )
    frame = (
        f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" '
        f'fill="{BACKGROUND}" stroke="{BORDER}"/>'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", frame, *rows, "</svg>\n"])


def text_of(svg: str) -> list[str]:
    """The lines of text in a picture, from top to bottom."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(line.itertext()) for line in found]


def _spans(line: str) -> list[str]:
    """The parts of a line, each in its colour."""
    spans: list[str] = []
    fill, bold, left = "", False, COLUMNS
    if len(CODE.sub("", line)) > COLUMNS:
        left -= 1
    pieces = CODE.split(line)
    for codes, text in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        for code in codes.split(";"):
            if code.strip("0") == "" and codes:
                fill, bold = "", False
            elif code == "1":
                bold = True
            elif code == "39":
                fill = ""
            elif code and code != "49":
                fill = COLOURS[code]
        shown, left = text[:left], left - len(text[:left])
        style = (f' fill="{fill}"' if fill else "") + (' font-weight="bold"' if bold else "")
        if shown:
            spans.append(f"<tspan{style}>{escape(shown)}</tspan>" if style else escape(shown))
        if shown != text:
            return [*spans, "…"]
    return spans
