"""What a database holds, in a few hashes: to tell whether two databases are the same.

By Postgres' own function, not by md5, which its OpenSSL may lack.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

from .databases import Connection

CONTENT = "count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text"
"""SQL for the number of rows of a table `t`, and a hash of them: a sum, so their order does not matter."""

_USER_SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_SCHEMA = f"""
    WITH own AS (
        SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relkind
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMAS}
    ), line AS (
        SELECT 'relation ' || name || ' ' || relkind::text AS text FROM own WHERE relkind <> 'i'
        UNION ALL
        SELECT format('column %s.%s %s %s %s %s', own.name, a.attname, format_type(a.atttypid, a.atttypmod),
                      a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid))
        FROM own JOIN pg_attribute a ON a.attrelid = own.oid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND own.relkind <> 'i'
        UNION ALL
        SELECT format('constraint %s %s %s', own.name, c.conname, pg_get_constraintdef(c.oid))
        FROM own JOIN pg_constraint c ON c.conrelid = own.oid
        UNION ALL
        SELECT 'index ' || pg_get_indexdef(i.indexrelid) FROM own JOIN pg_index i ON i.indrelid = own.oid
        UNION ALL
        SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM own JOIN pg_trigger t ON t.tgrelid = own.oid
        WHERE NOT t.tgisinternal
        UNION ALL
        SELECT 'view ' || name || ' ' || pg_get_viewdef(oid) FROM own WHERE relkind IN ('v', 'm')
        UNION ALL
        SELECT format('enum %s %s %s', t.typname, e.enumsortorder, e.enumlabel)
        FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid
        UNION ALL
        SELECT format('function %s %s', p.oid::regprocedure, hashtextextended(p.prosrc COLLATE "C", 0))
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE {_USER_SCHEMAS}
        UNION ALL
        SELECT format('extension %s %s', extname, extversion) FROM pg_extension
    )
    SELECT hashtextextended(coalesce(string_agg(text, E'\\n' ORDER BY text COLLATE "C"), '') COLLATE "C", 0)::text
    FROM line
"""

_TABLES = f"""
    SELECT n.nspname, c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND {_USER_SCHEMAS}
    ORDER BY 1, 2
"""


def digest(connection: Connection) -> dict[str, Any]:
    """The schema's hash, and for each table the number of rows and a hash of them.

    Returns:
        `{"schema": hash, "tables": {"public.customers": [rows, hash], …}}`
    """
    row = connection.execute(_SCHEMA).fetchone()
    assert row is not None
    tables = connection.execute(_TABLES).fetchall()
    counts = sql.SQL(" UNION ALL ").join(
        sql.SQL(f"SELECT {{}}, {CONTENT} FROM {{}} t").format(
            sql.Literal(f"{schema}.{table}"), sql.Identifier(schema, table)
        )
        for schema, table in tables
    )
    rows = connection.execute(counts).fetchall() if tables else []
    return {"schema": row[0], "tables": {name: [count, hash_] for name, count, hash_ in rows}}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not as expected, a line each; empty when the two databases are the same."""
    lines = [] if found["schema"] == expected["schema"] else ["the schema"]
    for name in sorted({*found["tables"], *expected["tables"]}):
        now, then = found["tables"].get(name), expected["tables"].get(name)
        if now == then:
            continue
        if now is None or then is None:
            lines.append(f"{name}: {'missing' if now is None else 'new'}")
        elif now[0] != then[0]:
            lines.append(f"{name}: {now[0]} rows instead of {then[0]}")
        else:
            lines.append(f"{name}: changed rows")
    return lines
