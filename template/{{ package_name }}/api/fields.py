"""Types of what clients send, shared by the routes.

The limits are those of the database, so a value that passes here can be stored: Postgres has no
NUL in text, and ids are bigints. Patterns also appear in the API document.
"""

from typing import Annotated

from fastapi import Path
from pydantic import StringConstraints

MAX_BIGINT = 2**63 - 1

Id = Annotated[int, Path(ge=1, le=MAX_BIGINT)]

# At least one character that is not white space.
Name = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00]*[^\s\x00][^\x00]*$",
    ),
]

# Only a message that arrives proves an address, so this just keeps out what can't be one. Stored
# in lower case, which makes it unique whatever its spelling.
Email = Annotated[
    str,
    StringConstraints(
        to_lower=True,
        max_length=254,
        pattern=r"^[^@\s\x00]+@[^@\s\x00]+\.[^@\s\x00]+$",
    ),
]

# E.164
Phone = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{6,14}$")]
