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
    """Answers that differ from the defaults, and the tests that pass in their render."""

    unit: int
    integration: int
    migrations: int = 3
    answers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Tests of the whole suite: each is marked `unit` or `integration`."""
        return self.unit + self.integration


FEATURES = ("use_auth", "use_redis", "use_pgvector", "use_assistant")

OTHER_NAMES = {
    "project_name": 'Zoë\'s "Grüße" & <Söhne> \\ 東京',
    "project_description": "Says 'hello', \"bye\" and {braces}: 100 % #1",
    "package_name": "order_desk",
    "ci": "gitlab",
}

# One feature off each, all on and all off: every pair of answers to two features is among them.
VARIANTS = {
    "defaults": Variant(unit=0, integration=0),
    "no auth": Variant(unit=0, integration=0, answers={"use_auth": False}),
    "no redis": Variant(unit=0, integration=0, answers={"use_redis": False}),
    "no pgvector": Variant(unit=0, integration=0, answers={"use_pgvector": False}),
    "no assistant": Variant(unit=0, integration=0, answers={"use_assistant": False}),
    "all off": Variant(unit=0, integration=0, answers=dict.fromkeys(FEATURES, False)),
    "other names": Variant(unit=0, integration=0, answers=OTHER_NAMES),
}

# A file of the defaults, alone, and how many tests it has.
ONE_FILE = (["tests/integration/test_customers.py"], 53)

# Quick to start, yet with a seeder, `ingest.py` and vectors: for tests that run it often.
LEAN = {"use_auth": False, "use_redis": False, "use_assistant": False}

# Answers whose renders pass everything that does not run them: each combination of the features,
# named for those that are off, and names of many kinds of letters.
COMBINATIONS: dict[str, Mapping[str, Any]] = {
    " ".join(["no", *off]) if off else "defaults": dict.fromkeys(off, False)
    for count in range(len(FEATURES) + 1)
    for off in itertools.combinations(FEATURES, count)
} | {"other names": OTHER_NAMES}
