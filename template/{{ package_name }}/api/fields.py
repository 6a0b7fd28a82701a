"""Types of what clients send, shared by the routes.

What passes here can be stored: Postgres has no NUL in text. Limits and patterns also appear in the
API document.
"""

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

# Ids are bigints in the database. Many readers of JSON know only the integers that a double holds,
# and so do those who read the limits in the API document.
MAX_ID = 2**53 - 1

Id = Annotated[int, Path(ge=1, le=MAX_ID)]

# At least one character that is neither white space nor a control character. Spelt out, because
# engines of regular expressions don't agree on white space.
VISIBLE = r"^[^\x00]*[^\s\x00-\x20\x7f-\xa0][^\x00]*$"

# What nobody sees, which Unicode says may be ignored when it can't be shown; what text is laid out by,
# and what it is cut by. A name with these looks like another, or becomes a header of its own.
UNSEEN = (
    r"\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# In the scripts from Arabic to Mongolian, two of them belong into words: \u200c and \u200d join and
# divide letters. \u1680 is a space, and taken off a name's ends before this is asked. What follows an
# ideograph may say which of its forms is meant: people know their name by it. Of the usual
# ones alone: with all, it takes a second to make a request from the pattern, as fuzzers do.
FORM = "[\u4e00-\u9fff][\U000e0100-\U000e01ef]"
CHARACTER = rf"(?:[\u0600-\u167f\u1681-\u18af][\u200c\u200d]|{FORM}|[^{UNSEEN}])"

Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        max_length=200,
        pattern=rf"^{CHARACTER}*(?:{FORM}|[^\s{UNSEEN}\xa0]){CHARACTER}*$",
    ),
]

# Only a message that arrives proves an address, so this just keeps out what can't be one: words of
# RFC 5322 with dots between, at a domain with a dot. Domains of other alphabets have such a form.
# Stored in lower case, so that each address has one spelling. Without `?`: headers of mail write other
# text as `=?utf-8?q?…?=`, and what sends mail would read another address in it.
WORD = "[A-Za-z0-9!#$%&'*+/=^_`{|}~-]+"
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
Email = Annotated[
    str,
    StringConstraints(
        to_lower=True,
        max_length=254,
        pattern=rf"^{WORD}(?:\.{WORD})*@(?:{LABEL}\.)+{LABEL}$",
    ),
]

# E.164
Phone = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{6,14}$")]

MOST_FIELDS = 100


class RequestBody(BaseModel):
    """What a client sends: the fields that are asked for, and no others."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, given: Any) -> Any:
        # Each that nobody asked for is an error of its own: as many as a body can hold would keep
        # the event loop for seconds.
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise PydanticCustomError(
                "too_many_fields", "Object should have at most {most} fields", {"most": MOST_FIELDS}
            )
        return given
