"""Imported before anything else under tests/: points the ledger at its tests' server."""

from tests.harness.environment import prepare

prepare(database_url="LEDGER_DB", LEDGER_MODE="test")
