"""Running the service on this machine: `make run`, `make psql`, `make reset`.

Brings a Postgres and a Valkey of the project's own, with what is stored in them kept in `.dev/`. The
tests' servers are others; what starts them is the same (`servers/`).

    command     what `make` calls
    place       `.dev/`: who holds it, its secrets, what other commands are told
    postgres    the Postgres, which keeps what it is given
    valkey      the Valkey, likewise
    database    made whole and filled once, then migrated, or left as it is
    service     uvicorn, from its start to its end
    stopping    how `make run` ends when it is told to

Nothing here imports the service or its tests, and nothing of the service imports this.
"""
