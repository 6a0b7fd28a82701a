"""The rules that say what a message is about, read from `triage_rules.toml`."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .text_matching import FoldedText, Phrase, fold

QUESTION = "question"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Something that a human must take care of."""

    id: str
    source: str
    meaning: str
    acknowledgement: str
    patterns: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product that a message may be about."""

    id: str
    patterns: tuple[Phrase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriageRules:
    """Intents and products, the most important first."""

    intents: tuple[Intent, ...]
    products: tuple[Product, ...]

    def intent_of(self, message: str) -> str:
        """The id of the first intent that the message matches; `QUESTION` if none does."""
        return _first(self.intents, fold(message)) or QUESTION

    def product_of(self, message: str) -> str | None:
        """The id of the first product that the message matches."""
        return _first(self.products, fold(message))

    def acknowledgement_of(self, intent: str) -> str:
        """What to tell a customer whose message goes to a human."""
        known = {i.id: i.acknowledgement for i in self.intents}
        return known.get(intent, self.intents[-1].acknowledgement)


def _first(candidates: Iterable[Intent | Product], folded: FoldedText) -> str | None:
    for candidate in candidates:
        if any(phrase.regex.search(folded.text) for phrase in candidate.patterns):
            return candidate.id
    return None


def _phrases(patterns: list[str]) -> tuple[Phrase, ...]:
    return tuple(Phrase.parse(pattern.lower()) for pattern in patterns)


@cache
def default_triage_rules() -> TriageRules:
    """The rules that come with the service."""
    text = (files(__package__) / "triage_rules.toml").read_text("utf-8")
    data: dict[str, Any] = tomllib.loads(text)
    return TriageRules(
        intents=tuple(
            Intent(
                id=rule["id"],
                source=rule["source"],
                meaning=rule["meaning"],
                acknowledgement=rule["acknowledgement"].strip(),
                patterns=_phrases(rule["patterns"]),
            )
            for rule in data["intents"]
        ),
        products=tuple(
            Product(id=rule["id"], patterns=_phrases(rule["patterns"])) for rule in data["products"]
        ),
    )
