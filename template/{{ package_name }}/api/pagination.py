"""Keyset pagination by id: a page costs the same wherever it is, and no row is shown twice.

Rows that are there from the first page to the last are all seen. One that is committed meanwhile is
seen if its id is behind the cursor: ids are drawn before a commit, so a transaction that takes long
may bring one that is before it. Who copies a table must look again from some pages back.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Annotated, Generic, Protocol, TypeVar

from fastapi import Query
from pydantic import BaseModel

Limit = Annotated[int, Query(ge=1, le=100, description="Rows on a page")]
# The last id of the previous page, 8 bytes: every text of this form is a cursor.
Cursor = Annotated[
    str, Query(pattern="^[A-Za-z0-9_-]{11}$", description="`next_cursor` of the previous page")
]

Item = TypeVar("Item", bound=BaseModel)


class Row(Protocol):
    """Anything with the id that pages go by."""

    @property
    def id(self) -> int: ...


class Page(BaseModel, Generic[Item]):
    """Some rows, and the cursor of the next page unless this is the last."""

    items: list[Item]
    next_cursor: str | None


def page_of(item: type[Item], rows: Sequence[Row], limit: int) -> Page[Item]:
    """The page that begins with `rows`: one more than `limit` of them, where there are."""
    items = [item.model_validate(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(items=items, next_cursor=encode_cursor(rows[limit - 1].id) if more else None)


def encode_cursor(last_id: int) -> str:
    """The cursor of the rows after `last_id`."""
    return urlsafe_b64encode(last_id.to_bytes(8, signed=True)).rstrip(b"=").decode()


def decode_cursor(cursor: str | None) -> int:
    """The id that the rows come after; without a cursor that of none."""
    if cursor is None:
        return 0
    return int.from_bytes(urlsafe_b64decode(cursor + "="), signed=True)
