"""The test harness: a real, seeded, self-healing Postgres for every test, and nothing to set up.

Owned by the template, and replaced by its updates: override, don't edit. A service describes
itself in `tests/conftest.py`; the guide is `docs/testing.md`. To read the code, follow a run:

    environment   who this process is, and the URLs that the service gets
    recipe        what the service says about itself
    guard         what is refused before anything is touched
    offline       what unit tests can't reach
    failure       why a run has no database, for all its workers
    server        the embedded Postgres (locks: how processes share it)
    databases     the names and marks of our databases, and how they go
    fingerprint   what a golden database depends on (digest: what it holds)
    golden        the golden database: found, or built and published
    worker        the clone that a worker's tests see, replaced when dirty
    transaction   the rollback of a test (lent: the connection that the service gets)
    reused        connections of a test with real commits, until it ends
    tasks         asyncio tasks that a test left behind
    harness       the above, put together for one process
    fixtures      what tests ask for
    plugin        the hooks of pytest
    integrity     whether these files are the template's
    valkey        the same for Redis
    development   what `make run` brings

`python -m tests.harness` shows what is there, opens psql, and cleans up.
"""

from __future__ import annotations

from .recipe import Recipe, module, script, together

__all__ = ["Recipe", "module", "script", "together"]
