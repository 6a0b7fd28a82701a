"""Entity tags: who changes what somebody else has changed meanwhile is told (RFC 9110, 13.1.1)."""

from typing import Annotated

from fastapi import Header, HTTPException

IfMatch = Annotated[
    str | None,
    Header(max_length=1000, description="Change it only if its `ETag` is (still) one of these"),
]


def etag_of(version: int) -> str:
    """The tag of a row in that version."""
    return f'"{version}"'


def refuse_changed(if_match: str | None, version: int) -> None:
    """Keep to what a client asks for. Lock the row before, so that its version stays.

    Raises:
        HTTPException: 412, the version is none of those that the client names.
    """
    if if_match is None or if_match.strip() == "*":
        return
    if etag_of(version) not in [tag.strip() for tag in if_match.split(",")]:
        raise HTTPException(412, "Somebody else has changed it meanwhile.")
