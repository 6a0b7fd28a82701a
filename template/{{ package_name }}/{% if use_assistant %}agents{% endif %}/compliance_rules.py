"""The rules of the compliance checker, read from `compliance_rules.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .text_matching import FoldedText, Phrase, Span, fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Prohibition:
    """Something that a reply must not say."""

    id: str
    phrase: str
    patterns: tuple[Phrase, ...]
    unless_followed_by: tuple[Phrase, ...]
    source: str
    why: str

    def find(self, folded: FoldedText) -> list[Span]:
        """Where the text says it, each place once, in the folded text's positions."""
        found: list[Span] = []
        for span in sorted(
            (span for pattern in self.patterns for span in pattern.find(folded)),
            key=lambda span: (span.start, -span.end),
        ):
            overlaps = bool(found) and span.start < found[-1].end
            if not overlaps and not self._is_term_of_art(folded, span):
                found.append(span)
        return found

    def _is_term_of_art(self, folded: FoldedText, span: Span) -> bool:
        rest = folded.text[span.end : span.end + 40].lstrip(" -")
        return any(phrase.regex.match(rest) for phrase in self.unless_followed_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclaimer:
    """Something that a reply must add, for a product or for what the text is about."""

    id: str
    text: str
    products: frozenset[str]
    signs: tuple[Phrase, ...]
    source: str

    def applies(self, product: str | None, texts: list[FoldedText]) -> bool:
        """Whether the product or a sign in one of the texts calls for it."""
        return product in self.products or any(
            any(True for _ in sign.find(text)) for sign in self.signs for text in texts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All rules, and the reply that takes the place of one that breaks them."""

    prohibitions: tuple[Prohibition, ...]
    disclaimers: tuple[Disclaimer, ...]
    fallback_reply: str

    @property
    def products(self) -> frozenset[str]:
        """Every product that some disclaimer knows."""
        return frozenset().union(*(disclaimer.products for disclaimer in self.disclaimers))


def product_name(product_type: str) -> str:
    """`"Credit_Card"` and `"credit-card"` are `"credit card"`."""
    return " ".join(fold(product_type).text.replace("_", " ").replace("-", " ").split())


def _phrases(patterns: list[str]) -> tuple[Phrase, ...]:
    return tuple(Phrase.parse(pattern) for pattern in patterns)


def parse_rules(text: str) -> Rules:
    """Read rules in the form of `compliance_rules.toml`.

    Raises:
        KeyError: a rule lacks one of its parts, its source above all.
        ValueError: not TOML, a bad pattern, or two rules of the same id.
    """
    data: dict[str, Any] = tomllib.loads(text)
    prohibitions = tuple(
        Prohibition(
            id=rule["id"],
            phrase=rule["phrase"],
            patterns=_phrases(rule["patterns"]),
            unless_followed_by=_phrases(rule.get("unless_followed_by", [])),
            source=rule["source"],
            why=rule["why"],
        )
        for rule in data["prohibited"]
    )
    disclaimers = tuple(
        Disclaimer(
            id=rule["id"],
            text=rule["text"].strip(),
            products=frozenset(map(product_name, rule["products"])),
            signs=_phrases(rule["signs"]),
            source=rule["source"],
        )
        for rule in data["disclaimers"]
    )
    ids = [rule.id for rule in prohibitions] + [rule.id for rule in disclaimers]
    if twice := {rule_id for rule_id in ids if ids.count(rule_id) > 1}:
        raise ValueError(f"rules with the same id: {', '.join(sorted(twice))}")
    return Rules(
        prohibitions=prohibitions,
        disclaimers=disclaimers,
        fallback_reply=data["fallback_reply"].strip(),
    )


@cache
def default_rules() -> Rules:
    """The rules that come with the service."""
    return parse_rules((files(__package__) / "compliance_rules.toml").read_text("utf-8"))
