"""The answers whose renders are tested in full, and how many tests each render brings.

The counts are literal on purpose: a render that lost tests, or collects none, must fail here.
When a rendered test is added or removed, run `make test`; each failure names the new count.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Answers that differ from the defaults, and how many tests pass in their render."""

    unit: int
    integration: int
    skipped: int = 0
    answers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Of the whole suite: each test is marked `unit` or `integration`."""
        return self.unit + self.integration


FEATURES = (
    "use_auth",
    "use_redis",
    "use_pgvector",
    "use_assistant",
)

OTHER_NAMES = {
    "project_name": 'Zoë\'s "Grüße" & <Söhne> \\ 東京',
    "project_description": "Says 'hello', \"bye\" and {braces}: 100 % #1",
    "package_name": "order_desk",
    "ci": "gitlab",
}

ALL_OFF = dict.fromkeys(FEATURES, False)

# Tests that ask a real language model, which none of these runs has.
LLM = 4

# One feature off each, all on and all off: every pair of answers to two features is among them.
# The other names are with features whose tests start processes, and name the package to them.
VARIANTS = {
    "defaults": Variant(434, 353, skipped=LLM),
    "no auth": Variant(366, 227, skipped=LLM, answers={"use_auth": False}),
    "no redis, other names": Variant(
        432, 339, skipped=LLM, answers={"use_redis": False, **OTHER_NAMES}
    ),
    "no pgvector": Variant(417, 353, skipped=LLM, answers={"use_pgvector": False}),
    "no assistant": Variant(222, 269, answers={"use_assistant": False}),
    "all off": Variant(125, 122, answers=dict.fromkeys(FEATURES, False)),
}
DEFAULTS = VARIANTS["defaults"]

# Tests of the migrations, in each of them.
MIGRATIONS = 3

# A file of the defaults, alone, and how many tests it has.
ONE_FILE = (["tests/integration/test_customers.py"], 93)

# Quick to start, yet with a seeder, `ingest.py` and vectors: for tests that run it often.
LEAN = {"use_auth": False, "use_redis": False, "use_assistant": False}

# Answers whose renders pass everything that does not run them: each combination of the features,
# named for those that are off, and names of many kinds of letters.
COMBINATIONS: dict[str, Mapping[str, Any]] = {
    " ".join(["no", *off]) if off else "defaults": dict.fromkeys(off, False)
    for count in range(len(FEATURES) + 1)
    for off in itertools.combinations(FEATURES, count)
} | {"other names": OTHER_NAMES}


def off(answers: Mapping[str, Any]) -> set[str]:
    """The features that are off."""
    return {name for name in FEATURES if not answers.get(name, True)}


_COUNTED = [off(variant.answers) for variant in VARIANTS.values()]
OTHERS = [name for name, answers in COMBINATIONS.items() if off(answers) not in _COUNTED]
"""Those of features that no variant has."""

ALONE = [name for name, answers in COMBINATIONS.items() if len(off(answers)) == len(FEATURES) - 1]
"""Each feature without the others. With the variants, any three features are tested with all of
the answers that they can have together."""
