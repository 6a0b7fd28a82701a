"""The query of a Postgres URL, as hosts give it out, for each of the drivers.

libpq knows more parameters than asyncpg does, and asyncpg reads some of them in a DSN alone: these
go on in one, under the name `dsn`, which SQLAlchemy hands through.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode

SCHEME = re.compile(r"postgres(?:ql)?(?:\+\w+)?")
"""How a URL of Postgres begins, with a driver of SQLAlchemy or without."""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

# Of which asyncpg has no counterpart, and which change nothing that a test sees.
_LIBPQ_ALONE = {
    *("connect_timeout", "tcp_user_timeout", "client_encoding", "fallback_application_name"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("channel_binding", "gssencmode", "sslcompression", "sslsni", "load_balance_hosts"),
}
_IN_A_DSN = {
    *("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "application_name", "options"),
}
_BOTH = {"host", "port", "passfile", "target_session_attrs", "krbsrvname", "gsslib"}
_SQLALCHEMY_ALONE = {"prepared_statement_cache_size"}
_SSL = {"ssl", "sslmode"}


def complaint(query: str) -> str:
    """What is wrong with a query: a parameter that not all drivers can honour; empty if nothing is."""
    known = {*_LIBPQ_ALONE, *_IN_A_DSN, *_BOTH, *_SQLALCHEMY_ALONE, *_SSL}
    for name, value in _pairs(query):
        if name not in known:
            return f"has the parameter {name}, which not every driver of Postgres takes"
        if name in _SSL and value not in SSL_MODES:
            return f"has {name}={value}, which is none of {', '.join(SSL_MODES)}"
    return ""


def for_asyncpg(query: str) -> str:
    """The query of a URL for SQLAlchemy with asyncpg."""
    taken, dsn = [], []
    for name, value in _pairs(query):
        if name in _SSL:
            taken.append(("ssl", value))
        elif name in _IN_A_DSN:
            dsn.append((name, _system_roots() if (name, value) == _SYSTEM else value))
        elif name not in _LIBPQ_ALONE:
            taken.append((name, value))
    if dsn:
        taken.append(("dsn", f"postgresql://?{_query(dsn)}"))
    return _query(taken)


def for_libpq(query: str) -> str:
    """The query of a URL for psycopg and psql."""
    return _query(
        [
            ("sslmode" if name in _SSL else name, value)
            for name, value in _pairs(query)
            if name not in _SQLALCHEMY_ALONE
        ]
    )


_SYSTEM = ("sslrootcert", "system")


def _system_roots() -> str:
    """What libpq calls `system`, as a file."""
    import ssl

    return ssl.get_default_verify_paths().cafile or "system"


def _pairs(query: str) -> list[tuple[str, str]]:
    # As node and JDBC spell it; libpq reads it so, too.
    require = {("ssl", "true"): ("ssl", "require"), ("ssl", "1"): ("ssl", "require")}
    return [require.get(pair, pair) for pair in parse_qsl(query, keep_blank_values=True)]


def _query(pairs: list[tuple[str, str]]) -> str:
    return urlencode(pairs, safe="/", quote_via=quote)
