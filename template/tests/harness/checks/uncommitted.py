"""What a failing test had written and not committed: nobody but its own session could see it."""

from __future__ import annotations

import re
from typing import Any

_WRITES = re.compile(
    r"\s*(?:insert|update|delete|merge|with\b.*\b(?:insert|update|delete))\b", re.I | re.S
)

_written: dict[Any, str] = {}  # the last statement that wrote, by SQLAlchemy's connection


def watch() -> None:
    """Note what is written and not committed, by all engines of SQLAlchemy."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "after_cursor_execute", _note):
        event.listen(Engine, "after_cursor_execute", _note)
        event.listen(Engine, "commit", _forget)
        event.listen(Engine, "rollback", _forget)


def _note(
    connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool
) -> None:
    wrote = context is not None and (context.isinsert or context.isupdate or context.isdelete)
    if wrote or _WRITES.match(statement):
        _written[connection] = statement


def _forget(connection: Any) -> None:
    _written.pop(connection, None)


def begin() -> None:
    """A test begins, with nothing written."""
    _written.clear()


def found(session: Any) -> list[str]:
    """What is written and not committed now, a line each.

    Args:
        session: the test's `db_session`, or None.
    """
    lines = [f"  {' '.join(statement.split())[:300]}" for statement in _written.values()]
    if session is not None:
        pending = [*session.new, *session.dirty, *session.deleted]
        lines += [
            f"  {type(one).__name__}, added to or changed in db_session, not even flushed"
            for one in pending
        ]
    return lines
