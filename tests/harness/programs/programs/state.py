"""What a database holds, and what a session is like: in queries that share nothing with the harness's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import asyncpg
import psycopg
from psycopg import sql

# What Postgres counts, estimates and numbers for itself.
_VOLATILE = "relpages reltuples relallvisible relallfrozen relfilenode relfrozenxid relminmxid"
_OWN = "(SELECT oid FROM pg_database WHERE datname = current_database())"
# What belongs to a database, and is stored for the whole server.
_SHARED = {
    "the database": f"""
        SELECT (datdba, encoding, datlocprovider, datistemplate, datallowconn, datconnlimit, dattablespace,
                datcollate, datctype, datacl, shobj_description(oid, 'pg_database'))::text
        FROM pg_database WHERE oid = {_OWN}""",
    "its settings": f"SELECT (setrole, setconfig)::text FROM pg_db_role_setting WHERE setdatabase = {_OWN}",
    "its dependencies": f"""
        SELECT (classid, objid, objsubid, refclassid, refobjid, deptype)::text FROM pg_shdepend WHERE dbid = {_OWN}""",
    "prepared transactions": "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
}
_RELATIONS = """
    SELECT n.nspname, c.relname, c.relkind::text, array_agg(a.attname ORDER BY a.attnum)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'm', 'S') AND NOT c.relisshared AND c.relispopulated AND n.nspname !~ '^pg_toast'
          AND c.relname NOT IN ('pg_statistic', 'pg_statistic_ext_data')
    GROUP BY 1, 2, 3 ORDER BY 1, 2
"""

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Part:
    """A table, a sequence or a catalog: queries for its lines, and for what tells that one changed."""

    name: str
    lines: str
    sum: str


class Content:
    """All that a database holds that nobody has used yet."""

    def __init__(self, connection: Connection) -> None:
        self.parts = [Part(name, query, _sum(query, "line")) for name, query in _SHARED.items()] + [
            _part(connection, *row) for row in connection.execute(_RELATIONS)
        ]
        self.lines = {part.name: _lines(connection, part) for part in self.parts}
        self.sums = self._sums(connection)

    def _sums(self, connection: Connection) -> list[Any]:
        sums = [f"SELECT {n}, * FROM ({part.sum})" for n, part in enumerate(self.parts)]
        return connection.execute(" UNION ALL ".join(sums) + " ORDER BY 1").fetchall()

    def differences(self, connection: Connection) -> list[str]:
        """How what a database holds now differs from this."""
        found = []
        for part, now, then in zip(self.parts, self._sums(connection), self.sums, strict=True):
            if now == then:
                continue
            more, less = _lines(connection, part), self.lines[part.name]
            for sign, lines in ("+", more - less), ("-", less - more):
                found += [f"{part.name}: {sign} {line[:200]}" for line in sorted(lines)[:5]]
        return found


def _lines(connection: Connection, part: Part) -> Counter[str]:
    return Counter(row[0] for row in connection.execute(part.lines))


def _sum(query: str, expression: str) -> str:
    return f"SELECT count(*), sum(hashtextextended({expression}, 0)) FROM ({query}) part (line)"


def _part(connection: Connection, schema: str, name: str, kind: str, columns: list[str]) -> Part:
    """What is made later is in pg_class."""
    table = sql.Identifier(schema, name).as_string(connection)
    is_catalog = schema == "pg_catalog"
    line = "t::text"
    if kind == "S":
        line = "(last_value, is_called)::text"
    elif is_catalog and name == "pg_class":
        line = f"({', '.join(c for c in columns if c not in _VOLATILE.split())})::text"
    query = f"SELECT {line} FROM ONLY {table} t"
    # A row of a catalog that was written is another version: to read all their texts takes long.
    versions = f"SELECT ctid::text || xmin::text FROM {table}"
    return Part(f"{schema}.{name}", query, _sum(versions if is_catalog else query, "line"))


_SESSION = """
    SELECT jsonb_build_object(
        'settings', (SELECT jsonb_object_agg(name, concat_ws(' from ', setting, source)) FROM pg_settings
                     WHERE name !~ '\\.' OR source <> 'default'),  -- those of a library come when it is loaded
        'placeholders', (SELECT jsonb_agg(current_setting(name, true)) FROM unnest(ARRAY['app.tenant', 'my.own']) name),
        'roles', concat_ws(' ', current_user, session_user, current_schemas(true)),
        'temporary schema', pg_my_temp_schema()::text,
        'temporary relations', (SELECT jsonb_agg(relname) FROM pg_class WHERE relpersistence = 't'),
        'locks', (SELECT jsonb_agg(concat_ws(' ', locktype, mode, objid))
                  FROM pg_locks WHERE pid = pg_backend_pid() AND locktype NOT IN ('relation', 'virtualxid')),
        'advisory locks', (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                           WHERE locktype = 'advisory' AND datname = current_database()),
        'channels', (SELECT jsonb_agg(name) FROM pg_listening_channels() name),
        'cursors', (SELECT jsonb_agg(name) FROM pg_cursors WHERE name <> ''),
        'prepared', (SELECT jsonb_agg(name) FROM pg_prepared_statements WHERE from_sql),
        'transaction', pg_current_xact_id_if_assigned()::text
    )::text
"""
_VALUES = """
    SELECT '{"a": 1}'::jsonb, ' [1]'::json, '10.0.0.1'::inet, 'sad'::mood, 1.50::numeric, ARRAY[1, NULL], ROW(1, 'x')::pair,
           '1 day'::interval, '2024-01-01 00:00+00'::timestamptz, '\\x00'::bytea
"""
# What programs run as well: a plan that was kept must fit.
_STATEMENTS = ["SELECT * FROM child", "SELECT id, name, mood FROM parent"]


async def describe(driver: Any) -> dict[str, str]:
    """All that tells a session, by asyncpg, from a new one. The last value of a sequence may stay, as in any pool."""
    found: dict[str, Any] = json.loads(await driver.fetchval(_SESSION))
    found |= {f"setting {name}": value for name, value in found.pop("settings").items()}
    found["in a transaction"] = driver.is_in_transaction()
    found["what asyncpg was told"] = repr(driver.get_settings())
    for query in (_VALUES, *_STATEMENTS):
        try:
            found[query] = [repr(tuple(row)) for row in await driver.fetch(query)]
        except asyncpg.PostgresError as error:
            found[query] = f"{type(error).__name__}: {error}"
    return {name: str(value) for name, value in found.items()}


async def by_the_service(factory: Any, url: str) -> tuple[Any, Any]:
    session = factory()
    return session, (await (await session.connection()).get_raw_connection()).driver_connection


async def by_asyncpg(factory: Any, url: str) -> tuple[Any, Any]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    return connection, connection


SESSIONS = {"a session of the service": by_the_service, "a connection of asyncpg": by_asyncpg}
"""Ways to open one, each giving what is to be closed, and asyncpg's connection."""
