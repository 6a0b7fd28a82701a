"""Finding phrases in a text, however they are written.

`fold` brings a text to plain lower-case letters and remembers where each came from, so that what
is found can be shown in the original. `Phrase` is a pattern over such a text.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_DASHES = frozenset("\u2212\u2043\u02d7")
_BLANKS = frozenset("\u2800\u3164\u115f\u1160")
_QUOTES = frozenset('"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u300c\u300d')
_APOSTROPHES = frozenset("'\u2018\u2019\u201a\u201b\u2032\u02bc`\u00b4\u2039\u203a")
# White letters on black squares and circles, and flags: Unicode does not call them compatible.
_LETTER_SYMBOLS = (0x1F150, 0x1F170, 0x1F1E6)

PARAGRAPH = "\n"


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoldedText:
    """A text in plain letters. `text[i]` stands for `original[starts[i]:ends[i]]`."""

    original: str
    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def span_in_original(self, span: Span) -> Span:
        """Where the characters of a span came from."""
        return Span(self.starts[span.start], self.ends[span.end - 1])


@cache
def _look_alikes() -> dict[str, str]:
    table = tomllib.loads((files(__package__) / "look_alikes.toml").read_text("utf-8"))["letters"]
    return {other: latin for latin, others in table.items() for other in others}


def _fold_one(char: str) -> str:
    """One character of a decomposed text as plain text; "" for what can't be seen."""
    if char.isascii() and char.isprintable():
        return char.lower()
    for first in _LETTER_SYMBOLS:
        if first <= ord(char) < first + 26:
            return chr(ord("a") + ord(char) - first)
    category = unicodedata.category(char)
    folded = char.casefold()
    if char.isspace() or char in _BLANKS:
        folded = PARAGRAPH if char in "\n\v\u2028\u2029\x85" else " "
    elif category in ("Mn", "Me", "Cf", "Cc"):
        folded = ""
    elif category == "Pd" or char in _DASHES:
        folded = "-"
    elif char in _QUOTES:
        folded = '"'
    elif char in _APOSTROPHES:
        folded = "'"
    elif latin := _look_alikes().get(char):
        folded = latin
    return "".join(_look_alikes().get(c, c) for c in folded)


@cache
def _fold_char(char: str) -> str:
    return "".join(_fold_one(part) for part in unicodedata.normalize("NFKD", char))


def fold(original: str) -> FoldedText:
    """Bring a text to plain letters.

    Case, accents, compatibility forms, look-alike letters and invisible characters are gone; a run
    of white space is one space, or one line break where it is a blank line or more.
    """
    chars: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    breaks = 0
    for index, char in enumerate(original):
        for folded in _fold_char(char):
            if folded not in (" ", PARAGRAPH):
                breaks = 0
            elif chars and chars[-1] in (" ", PARAGRAPH):  # one more of a run of white space
                breaks += folded == PARAGRAPH
                chars[-1] = PARAGRAPH if breaks > 1 else " "
                ends[-1] = index + 1
                continue
            else:
                breaks = int(folded == PARAGRAPH)
            chars.append(" " if folded == PARAGRAPH else folded)
            starts.append(index)
            ends.append(index + 1)
    return FoldedText(original, "".join(chars), tuple(starts), tuple(ends))


# All repetitions are bounded, and there is one way to take another word: matching takes linear time
# whatever the text. Were "a'b'c" one word, or two, or three, the ways would multiply.
_BETWEEN_WORDS = r"(?: ?[^a-z0-9\s.!?;:,()\[\]]{0,3} ?|[^a-z0-9\s]{1,3})"
_BETWEEN_LETTERS = r"[ \-_.*]{1,2}"
_NEGATION = (
    r"(?:not?|never|nothing|nor|none|neither|hardly|without|cannot|[a-z]{2,6}n't"
    r"|(?:is|are|was|were|do|does|did|ca|wo)nt)\b"
)
_OTHER_WORD = rf" ?-? ?\b(?!{_NEGATION})[\w'%\u00a3$]{{1,30}}+(?:[.,]\d{{1,6}}+%?+)?+"
_DISGUISES = {
    "a": "[a@4]",
    "e": "[e3]",
    "i": "[i1!|]",
    "l": "[l1|]",
    "o": "[o0]",
    "s": "[s5$]",
    "t": "[t7]",
    "'": "'?",
}


def _letters(word: str) -> list[str]:
    return [_DISGUISES.get(letter, re.escape(letter)) for letter in word]


def _any_of(alternatives: Iterable[str]) -> str:
    return f"(?:{'|'.join(alternatives)})"


def _compile(pattern: str) -> re.Pattern[str]:
    plain = ""
    spelled_out: list[str] = []  # "r i s k - f r e e"
    for part in pattern.split():
        if part == "...":
            plain += rf"(?:{_OTHER_WORD}){{0,3}}?"
            continue
        optional = part.startswith("(")
        if part.endswith(")") is not optional:
            raise ValueError(f"a parenthesis holds one word: {pattern!r}")
        if optional and not plain:
            raise ValueError(f"a pattern can't begin with an optional word: {pattern!r}")
        words = [_letters(word) for word in part.strip("()").split("|")]
        separator = _BETWEEN_WORDS if plain else ""
        plain += f"(?:{separator}{_any_of(map(''.join, words))}){'?' if optional else ''}"
        if not optional:
            spelled_out.append(_any_of(map(_BETWEEN_LETTERS.join, words)))
    either = _any_of([plain, r"[ \-_.*]{1,4}".join(spelled_out)])
    return re.compile(rf"(?<![a-z0-9]){either}(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A pattern of words: `a|b` alternatives, `(a)` optional, `...` up to three other words."""

    pattern: str
    regex: re.Pattern[str]

    @classmethod
    def parse(cls, pattern: str) -> "Phrase":
        """Compile a pattern in the small language of the rule files."""
        return cls(pattern, _compile(pattern))

    def find(self, folded: FoldedText) -> Iterator[Span]:
        """Every place of a folded text where the words are, in the folded text's positions."""
        for match in self.regex.finditer(folded.text):
            yield Span(*match.span())
