"""Errors that any part of the service may raise."""


class Unavailable(Exception):
    """Something the service depends on does not answer; the client gets 503 and may try again."""
