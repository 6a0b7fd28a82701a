"""Types of what clients send, shared by the routes.

What passes here can be stored: Postgres has no NUL in text. Limits and patterns also appear in the
API document.
"""

from typing import Annotated

from fastapi import Path
from pydantic import StringConstraints

# Ids are bigints in the database. Many readers of JSON know only the integers that a double holds,
# and so do those who read the limits in the API document.
MAX_ID = 2**53 - 1

Id = Annotated[int, Path(ge=1, le=MAX_ID)]

# At least one character that is neither white space nor a control character. Spelt out, because
# engines of regular expressions don't agree on white space.
VISIBLE = r"^[^\x00]*[^\s\x00-\x20\x7f-\xa0][^\x00]*$"

Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        max_length=200,
        pattern=VISIBLE,
    ),
]

# Only a message that arrives proves an address, so this just keeps out what can't be one. Visible
# ASCII (domains of other alphabets have such a form), stored in lower case, so that each address
# has one spelling.
Email = Annotated[
    str,
    StringConstraints(
        to_lower=True,
        max_length=254,
        pattern=r"^[!-?A-~]+@[!-?A-~]+\.[!-?A-~]+$",
    ),
]

# E.164
Phone = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{6,14}$")]
