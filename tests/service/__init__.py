"""The rendered service: its own tests, `make run`, and as a process in production."""
