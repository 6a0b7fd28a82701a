"""The stand-in for an asyncpg connection that the service's engine gets in a rollback test.

It has the part of asyncpg's interface that SQLAlchemy's dialect uses, see `_AsyncpgConnection` in
`sqlalchemy.dialects.postgresql.asyncpg`; anything else goes to the real connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any

from .errors import HarnessError

if TYPE_CHECKING:
    from .transaction import Frame, TestTransaction

_PREPARED_MAX = 500


class LentConnection:
    """Looks like a connection of one's own; runs on the test's."""

    def __init__(self, transaction: TestTransaction, raw: Any) -> None:
        self.last = "(none)"
        """The last statement, for error messages."""
        self.frame: Frame | None = None
        self._test = transaction
        self._raw = raw
        self._closed = False

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> _LentTransaction:
        if readonly or deferrable:
            raise HarnessError(
                "A rollback test can't make a transaction read-only or deferrable. "
                "Mark the test @pytest.mark.own_database."
            )
        return _LentTransaction(self._test, self, isolation)

    async def prepare(self, query: str, *, name: str | None = None) -> _LentStatement:
        prepared = self._test.prepared
        if query not in prepared:
            if len(prepared) >= _PREPARED_MAX:
                prepared.clear()
            prepared[query] = await self._test.run(
                self, query, lambda: self._raw.prepare(query, name=name)
            )
        return _LentStatement(self._test, self, query, prepared[query])

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        return await self._test.run(
            self, query, lambda: self._raw.execute(query, *arguments, **options)
        )

    async def executemany(self, query: str, arguments: Iterable[Any], **options: Any) -> Any:
        return await self._test.run(
            self, query, lambda: self._raw.executemany(query, arguments, **options)
        )

    async def fetch(self, query: str, *arguments: Any, **options: Any) -> Any:
        return await self._test.run(
            self, query, lambda: self._raw.fetch(query, *arguments, **options)
        )

    async def fetchrow(self, query: str, *arguments: Any, **options: Any) -> Any:
        return await self._test.run(
            self, query, lambda: self._raw.fetchrow(query, *arguments, **options)
        )

    async def fetchval(self, query: str, *arguments: Any, **options: Any) -> Any:
        return await self._test.run(
            self, query, lambda: self._raw.fetchval(query, *arguments, **options)
        )

    async def set_type_codec(self, typename: str, **options: Any) -> None:
        await self._configure(
            (typename, options.get("schema")), self._raw.set_type_codec, typename, **options
        )

    async def set_builtin_type_codec(self, typename: str, **options: Any) -> None:
        await self._configure(
            (typename, options.get("schema")), self._raw.set_builtin_type_codec, typename, **options
        )

    async def _configure(self, key: object, method: Any, *arguments: Any, **options: Any) -> None:
        """Set a codec once: each costs a query, and the service sets them on each new connection."""
        if key not in self._test.configured:
            await method(*arguments, **options)
            self._test.configured.add(key)

    def is_closed(self) -> bool:
        return self._closed or bool(self._raw.is_closed())

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's signature
        self._closed = True
        if self.frame is not None:
            await self._test.rollback(self.frame)

    def terminate(self) -> None:
        self._closed = True
        if self.frame is not None:
            self._test.abandon(self.frame)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class _LentTransaction:
    def __init__(self, test: TestTransaction, lent: LentConnection, isolation: str | None) -> None:
        self._test, self._lent, self._isolation = test, lent, isolation
        self._frame: Frame | None = None

    async def start(self) -> None:
        self._frame = self._lent.frame = await self._test.enter(self._lent, self._isolation)

    async def commit(self) -> None:
        if self._frame is not None:
            await self._test.commit(self._frame)

    async def rollback(self) -> None:
        if self._frame is not None:
            await self._test.rollback(self._frame)


class _LentStatement:
    def __init__(
        self, test: TestTransaction, lent: LentConnection, query: str, prepared: Any
    ) -> None:
        self._test, self._lent, self._query, self._prepared = test, lent, query, prepared

    async def fetch(self, *arguments: Any) -> Any:
        return await self._test.run(
            self._lent, self._query, lambda: self._prepared.fetch(*arguments)
        )

    async def cursor(self, *arguments: Any) -> _LentCursor:
        opened = await self._test.run(
            self._lent, self._query, lambda: self._prepared.cursor(*arguments)
        )
        return _LentCursor(self._test, self._lent, self._query, opened)

    def get_attributes(self) -> Any:
        return self._prepared.get_attributes()

    def get_statusmsg(self) -> Any:
        return self._prepared.get_statusmsg()


class _LentCursor:
    def __init__(
        self, test: TestTransaction, lent: LentConnection, query: str, cursor: Any
    ) -> None:
        self._test, self._lent, self._query, self._cursor = test, lent, query, cursor

    def fetch(self, size: int) -> Awaitable[Any]:
        return self._test.run(self._lent, self._query, lambda: self._cursor.fetch(size))
