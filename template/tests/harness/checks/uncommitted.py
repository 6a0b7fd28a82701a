"""What a failing test had written and not committed: nobody but its own session could see it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

COMMENTS = r"(?:\s|--[^\n]*\n)*(?:/\*.*\*/(?:\s|--[^\n]*\n)*)?"
"""What may stand before a statement. Comments hold comments: so this goes to the end of any of them."""

_WRITES = re.compile(
    COMMENTS + r"(?:(?:insert|update|delete|merge|truncate|create|alter|drop)\b"
    r"|with\b.*\b(?:insert|update|delete|merge)\b)",
    re.I | re.S,
)
_ENDS = re.compile(
    COMMENTS + r"(?:commit|end|rollback|abort)(?:\s+(?:work|transaction))?\s*;?\s*", re.I | re.S
)
_SAVEPOINT = re.compile(
    COMMENTS + r"(savepoint|release|rollback(?:\s+(?:work|transaction))?\s+to)"
    r'(?:\s+savepoint)?\s+"?(\w+)',
    re.I | re.S,
)


@dataclass
class _Part:
    """A transaction's, from one savepoint to the next one."""

    savepoint: str
    wrote: str = ""
    """The last statement that wrote."""


_transactions: dict[Any, list[_Part]] = {}  # by SQLAlchemy's connection


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
        _transactions.setdefault(connection, [_Part("")])[-1].wrote = statement
    elif savepoint := _SAVEPOINT.match(statement):
        what, name = savepoint[1].lower(), savepoint[2].lower()
        _at_savepoint(_transactions.setdefault(connection, [_Part("")]), what, name)
    elif _ENDS.fullmatch(statement):
        _forget(connection)


def _at_savepoint(parts: list[_Part], what: str, name: str) -> None:
    if what == "savepoint":
        parts.append(_Part(name))
        return
    names = [part.savepoint for part in parts]
    if name not in names:
        return  # the server says so
    last = len(names) - 1 - names[::-1].index(name)
    ended = parts[last:]
    del parts[last:]
    if what == "release":
        parts[-1].wrote = _last(ended) or parts[-1].wrote
    else:
        parts.append(_Part(name))  # it is still there


def _last(parts: list[_Part]) -> str:
    return next((part.wrote for part in reversed(parts) if part.wrote), "")


def _forget(connection: Any) -> None:
    _transactions.pop(connection, None)


def begin() -> None:
    """A test begins, with nothing written."""
    _transactions.clear()


def found(session: Any) -> list[str]:
    """What is written and not committed now, a line each.

    Args:
        session: the test's `db_session`, or None.
    """
    written = filter(None, map(_last, _transactions.values()))
    lines = [f"  {' '.join(statement.split())[:300]}" for statement in written]
    if session is not None:
        pending = [*session.new, *session.dirty, *session.deleted]
        lines += [
            f"  {type(one).__name__}, added to or changed in db_session, not even flushed"
            for one in pending
        ]
    return lines
