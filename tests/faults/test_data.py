"""FAULTS 1, 2, 12, 13: what is done to the databases, between runs and during one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.small import SQL, Small
from tests.support.tiers import first

CONCERNS = ["*/harness/golden/*"]

LOSSES = {
    "emptied": "DROP SCHEMA public CASCADE",
    "no rows": "DELETE FROM customers",
    "a row missing": "DELETE FROM customers WHERE id = 3",
    "a sequence moved": "ALTER SEQUENCE customers_id_seq RESTART 77",
    "a constraint missing": "ALTER TABLE customers DROP CONSTRAINT uq_customers_email",
}

CHANGES = {
    "dropped": "DROP DATABASE {}",
    "renamed": "ALTER DATABASE {} RENAME TO app_mine",
    "opened": "ALTER DATABASE {} ALLOW_CONNECTIONS true",
    "no comment": "COMMENT ON DATABASE {} IS 'hello'",
    "another comment": "COMMENT ON DATABASE {} IS '{{\"fingerprint\": 1}}'",
    "half dropped": "UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{}'",
}


@pytest.mark.parametrize("loss", first(2, LOSSES))
def test_golden_database_that_lost_something(loss: str, small: Small, complete: Any) -> None:
    with small.console() as console:
        golden = console.golden()
        console.sql(f"ALTER DATABASE {golden} ALLOW_CONNECTIONS true")
        console.sql(LOSSES[loss], database=golden)
        console.sql(f"ALTER DATABASE {golden} ALLOW_CONNECTIONS false")
    small.healed(complete)


@pytest.mark.parametrize("change", first(2, CHANGES))
def test_golden_database_that_is_not_as_published(change: str, small: Small, complete: Any) -> None:
    with small.console() as console:
        golden = console.golden()
        console.sql(f"ALTER DATABASE {golden} IS_TEMPLATE false")
        console.sql(CHANGES[change].format(golden))
    small.healed(complete, also={"app_mine"} if change == "renamed" else None)
    with small.console() as console:
        console.sql("DROP DATABASE IF EXISTS app_mine")


# What of a database says that it is ours, and that it may be dropped.
KNOWN_BY = (
    SQL
    + """
import pytest


@pytest.mark.parametrize("time", range(2))
def test_changes_it(time):
    ((name,),) = sql("SELECT current_database()")
    sql(f"ALTER DATABASE {name} {os.environ['WITH']}")
"""
)


@pytest.mark.parametrize(
    "change", first(1, ["IS_TEMPLATE true", "CONNECTION LIMIT 3", "OWNER TO pg_read_all_data"])
)
def test_database_that_a_test_makes_unlike_ours(change: str, small: Small, complete: Any) -> None:
    """It goes, as any other: no later run fails for it, and none is left for good."""
    outcome = small.tried(KNOWN_BY, WITH=change)
    assert (outcome.status, outcome.counts) == (0, {"passed": 2})
    small.healed(complete)


READ_ONLY = (
    SQL
    + """
import pytest


def test_role_may_only_read():
    sql("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on")


@pytest.mark.parametrize("time", range(2))
def test_writes(time):
    sql("UPDATE customers SET phone = '0'")
"""
)


@pytest.mark.thorough
def test_role_that_a_test_lets_only_read(small: Small, complete: Any) -> None:
    """Neither the next test nor the next run is told that it may not write."""
    try:
        outcome = small.tried(READ_ONLY)
        assert (outcome.status, outcome.counts) == (0, {"passed": 3})
        small.healed(complete)
    finally:  # others use its server
        with small.console() as console:
            console.sql("SET default_transaction_read_only = off")
            console.sql("ALTER ROLE CURRENT_USER RESET default_transaction_read_only")
