"""The test harness: a real, seeded, self-healing Postgres for every test, and nothing to set up.

Owned by the template, and replaced by its updates: override, don't edit. A service describes
itself in `tests/conftest.py`; the guide is `docs/testing.md`. To read the code, follow a run:

    layout             where all of it lies in the project
    files, waiting     those that nobody else may read; by no clock that a test may stop
    errors             what its user can act on
    environment        who this process is, and the URLs that the service gets
    shell              what of the user's shell tests see
    recipe             what the service says about itself
    markers            which tests need a server
    servers/           guard: what is refused before anything is touched
                       urls: what they ask for, as each driver has it
                       postgres, valkey: the embedded servers
                       binaries: their programs (user, namespace: as whom they run)
                       processes: how one is known again, and ended
                       locks: how processes share a server
                       loopback: ports, where a socket will not do
                       psql: opened in a database
    golden/            databases: the names and marks of our databases, and how they go
                       fingerprint: what a golden database depends on (digest: what it holds)
                       build: the golden database, found, or built and published
    isolation/         worker: the database that a worker's tests see, settled after each
                       clones: spares that replace it
                       changes: what Postgres counted (content: what it should hold)
                       putback: rows put back, and compared
                       pools: what they keep in tests, which is nothing
                       connections: those of the service, kept from test to test
                       statements: what a session remembers of one
    development/       what `make run` brings: such servers, and the service
    checks/            offline: what tests can't reach, nor what they start (children/)
                       addresses: whether it is that
                       versions: the oldest that will do
                       read_only: what is done without, where nothing can be written
                       tasks, uncommitted: what a test left, or had not committed
                       failure: why a run has no database, for all its workers
                       integrity: whether these files are the template's
    harness            the above, put together for one process (summary: what it tells at its end)
    fixtures, valkey   what tests ask for
    lifespan           an application's, for clients
    plugin             the hooks of pytest

    doctor             what a project still needs (checks/looking: what pytest sees of it)
    commands           what is there, psql, cleaning up

`python -m tests.harness` runs these two.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - said before anything that it can't read
    sys.exit(
        "{} needs Python 3.11 or newer, and this is {}.{}: {}".format(
            __name__.replace(".", "/"), *sys.version_info[:2], sys.executable
        )
    )

from .recipe import Recipe, module, script, together

__all__ = ["Recipe", "module", "script", "together"]
