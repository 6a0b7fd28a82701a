"""Imported before anything else under tests/: points the service at its tests' servers."""

from tests.harness.environment import prepare

# Nobody else ends what a session waits for: a program does one thing after the other.
prepare().limits["lock_timeout"] = "50ms"
