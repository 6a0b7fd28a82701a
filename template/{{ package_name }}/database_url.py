"""The database's URL as hosts give it out, in words that SQLAlchemy and asyncpg take.

psql's library knows more parameters than asyncpg does. Those that asyncpg reads in a DSN alone go on
in one, which SQLAlchemy hands through as the parameter `dsn`.
"""

import ssl
from urllib.parse import quote, unquote, urlencode

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

AS_THEY_ARE = {
    *("host", "port", "passfile", "target_session_attrs", "krbsrvname", "gsslib", "dsn"),
    "prepared_statement_cache_size",
}
IN_A_DSN = {
    *("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "application_name", "options"),
}
# asyncpg has no counterpart, and the service does without. DATABASE_CONNECT_TIMEOUT is its own.
LEFT_OUT = {
    *("connect_timeout", "tcp_user_timeout", "client_encoding", "fallback_application_name"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("channel_binding", "gssencmode", "sslcompression", "sslsni", "load_balance_hosts"),
}


def asyncpg_url(value: str) -> str:
    """The same database, for SQLAlchemy with asyncpg. What it returns, it accepts.

    Raises:
        ValueError: it is no URL of Postgres, or has a parameter that not every driver takes.
    """
    try:
        url = make_url(value)
    except ArgumentError:
        # Not the value: it may hold a password.
        raise ValueError("must be a URL: postgresql+asyncpg://user:password@host/name") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+asyncpg"}:
        raise ValueError(f"must be a postgresql+asyncpg:// URL, not {url.drivername}://")
    taken: dict[str, str | tuple[str, ...]] = {}
    dsn: dict[str, str] = {}
    for name, found in url.query.items():
        if name in AS_THEY_ARE:
            taken[name] = found
            continue
        word = found if isinstance(found, str) else found[-1]
        if name in {"ssl", "sslmode"}:
            taken["ssl"] = _mode(name, word)
        elif name in IN_A_DSN:
            dsn[name] = _system_roots() if (name, word) == ("sslrootcert", "system") else word
        elif name not in LEFT_OUT:
            raise ValueError(f"has the parameter {name}, which not every driver of Postgres takes")
    if dsn:
        taken["dsn"] = "postgresql://?" + urlencode(dsn, safe="/", quote_via=quote)
    url = url.set(drivername="postgresql+asyncpg", query=taken)
    if (folder := unquote(url.host or "")).startswith("/"):
        url = _of_socket(url, folder)
    return url.render_as_string(hide_password=False)


def _of_socket(url: URL, folder: str) -> URL:
    """The same, with a socket's folder that stands in the host's place, as psql takes it, in the query."""
    query = {**url.query, "host": folder, "port": str(url.port or 5432)}
    return URL.create(
        url.drivername, url.username, url.password, database=url.database, query=query
    )


def _mode(name: str, word: str) -> str:
    if name == "ssl" and word in {"1", "true"}:  # as other languages' drivers spell it
        return "require"
    if word not in SSL_MODES:
        raise ValueError(f"has {name}={word}, which is none of {', '.join(SSL_MODES)}")
    return word


def _system_roots() -> str:
    """What psql's library calls `system`, as a file."""
    return ssl.get_default_verify_paths().cafile or "system"
