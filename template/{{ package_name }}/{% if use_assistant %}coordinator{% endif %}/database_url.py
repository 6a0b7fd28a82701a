"""One database URL for two drivers."""

from typing import Any

from sqlalchemy import make_url

_NAMES = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "database": "dbname",
    "ssl": "sslmode",
    "passfile": "passfile",
}


def psycopg_arguments(database_url: str) -> dict[str, Any]:
    """What SQLAlchemy would give to asyncpg, in psycopg's words.

    SQLAlchemy reads the URL, so that socket directories, several hosts and escaped passwords mean
    the same to both. Options that only asyncpg knows are left out.
    """
    url = make_url(database_url)
    _, options = url.get_dialect()().create_connect_args(url)
    return {
        theirs: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for ours, theirs in _NAMES.items()
        if (value := options.get(ours)) is not None
    }
