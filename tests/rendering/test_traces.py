"""A feature that was left out leaves no trace: no word of it in any rendered file."""

from __future__ import annotations

import re

import pytest

from tests.conftest import Render
from tests.support.project import ANSWERS_FILE, CODE_ANSWERS, Project
from tests.variants import FEATURES

CONCERNS = ["template/*.jinja", "template/*use_*", "copier.yml"]

# Words that only the feature brings, as they stand in code, settings and documents.
WORDS = {
    "use_auth": r"auth\w*|jwt\w*|pyjwt|argon2\w*|log_?ins?|(?:access |bearer )tokens?|user names?"
    r"|registrations?|create_test_\w+|current_user|models\.user|is_staff|user_sessions?|email_proofs?"
    r"|aiosmtp\w*|smtp\w*|zxcvbn|refresh_\w+|mail_\w+|test_policies",
    "use_redis": r"redis\w*|valkey\w*|limit_client|rate_limit_patience",
    "use_pgvector": r"pgvector\w*|embedding\w*|embedders?|vectors?|hnsw|similarity|cosine\w*",
    "use_assistant": r"assistants?|langgraph\w*|langchain\w*|agents?|agent_\w+|coordinators?"
    r"|complian\w+|escalat\w+|conversations?|checkpoint\w*|psycopg_?pool|llm_\w+",
}

# Lines that hold such a word and do not come from the feature.
ALLOWED = {
    "use_auth": [
        r"Authorization.*api_key",  # of the embedding service, and of the model's
        r"headers\[\"Authorization\"\]\)|authorization: bearer a-key",
        r"hosts?, authors|authority",
        r"CREATE ROLE service LOGIN",
    ],
    "use_redis": [],
    "use_pgvector": [],
    "use_assistant": [r"AGENTS\.md", r"coding agents?", r"[Uu]ser.?[Aa]gent"],
}

# The harness serves every combination and is the same in all of them.
EVERYWHERE = ("tests/harness/", ANSWERS_FILE, CODE_ANSWERS)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("others", [True, False], ids=["others on", "all off"])
def test_no_trace_of_what_was_left_out(feature: str, others: bool, rendered: Render) -> None:
    answers = {feature: False} if others else dict.fromkeys(FEATURES, False)
    left = traces(rendered(**answers), feature)
    assert not left, "\n".join(left)


@pytest.mark.parametrize("feature", FEATURES)
def test_words_are_there_when_the_feature_is(feature: str, rendered: Render) -> None:
    """In each file that it brings. Else the search above would look for the wrong words."""
    without = {name for name, _ in rendered(**{feature: False}).files()}
    brought = {name for name, _ in rendered().files()} - without
    assert brought
    assert brought <= {trace.partition(":")[0] for trace in traces(rendered(), feature)}


def traces(project: Project, feature: str) -> list[str]:
    """Where the feature's words stand in the project, as `file:line: text`."""
    word = re.compile(rf"(?<![a-z])(?:{WORDS[feature]})(?![a-z])", re.IGNORECASE)
    allowed = re.compile("|".join(ALLOWED[feature]) or r"(?!)")
    found = []
    for name, path in project.files():
        if name.startswith(EVERYWHERE):
            continue
        if word.search(name) and not allowed.search(name):
            found.append(f"{name}: the name")
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if word.search(line) and not allowed.search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    return found
