"""Keyset pagination: a page costs the same wherever it is, and rows that come or go between two
pages are neither shown twice nor skipped.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

Limit = Annotated[int, Query(ge=1, le=100, description="Rows on a page")]
# The last id of the previous page, 8 bytes: every text of this form is a cursor.
Cursor = Annotated[
    str, Query(pattern="^[A-Za-z0-9_-]{11}$", description="`next_cursor` of the previous page")
]

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Some rows, and the cursor of the next page unless this is the last."""

    items: list[Item]
    next_cursor: str | None


def encode_cursor(last_id: int) -> str:
    """The cursor of the rows after `last_id`."""
    return urlsafe_b64encode(last_id.to_bytes(8, signed=True)).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> int:
    """The id that the rows come after."""
    return int.from_bytes(urlsafe_b64decode(cursor + "="), signed=True)
