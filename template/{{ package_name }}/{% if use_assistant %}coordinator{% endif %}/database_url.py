"""One database URL for two drivers."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy import make_url

_NAMES = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "database": "dbname",
    "ssl": "sslmode",
    "passfile": "passfile",
    "target_session_attrs": "target_session_attrs",
    "krbsrvname": "krbsrvname",
    "gsslib": "gsslib",
}


def psycopg_arguments(database_url: str) -> dict[str, Any]:
    """What SQLAlchemy would give to asyncpg, in psycopg's words.

    SQLAlchemy reads the URL, so that socket directories, several hosts and escaped passwords mean
    the same to both. Options that only asyncpg knows are left out; those of its DSN are psycopg's own.
    """
    url = make_url(database_url)
    _, options = url.get_dialect()().create_connect_args(url)
    return dict(parse_qsl(urlsplit(options.get("dsn", "")).query)) | {
        theirs: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for ours, theirs in _NAMES.items()
        if (value := options.get(ours)) is not None
    }
