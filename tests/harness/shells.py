"""Shells that are set up for other things than these tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import wire


@contextmanager
def counting() -> Iterator[tuple[int, list[socket.socket]]]:
    """Something that accepts connections, and counts them."""
    came: list[socket.socket] = []
    with wire.listening(came.append) as port:
        yield port, came


def set_up_for_other_things(port: int) -> dict[str, str | None]:
    """A shell that is set up for other things: tracing, a proxy, a model, a database."""
    url = f"http://127.0.0.1:{port}"
    tracing = {
        **dict.fromkeys(("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT", "LANGFUSE_HOST"), url),
        **dict.fromkeys(("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2"), "true"),
        **dict.fromkeys(("LANGCHAIN_TRACING_V2", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY"), "true"),
        "LANGSMITH_PROJECT": "production",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "SENTRY_DSN": f"http://key@127.0.0.1:{port}/1",
    }
    proxies = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    model = {
        **dict.fromkeys(("OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_PROXY"), url),
        "OPENAI_API_KEY": "a-key-that-costs-money",
        "OPENAI_API_TYPE": "azure",
        "OPENAI_ORG_ID": "production",
    }
    certificates = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    libpq = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": "production",
        "PGSSLMODE": "verify-full",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGREQUIREPEER": "somebody",
        "PGOPTIONS": "-c search_path=nowhere",
        "PGTARGETSESSIONATTRS": "read-only",
        "PGCHANNELBINDING": "require",
        "PGGSSENCMODE": "require",
    }
    graphs = ("LANGGRAPH_DEFAULT_RECURSION_LIMIT", "LANGGRAPH_DELTA_MAX_SUPERSTEPS_SINCE_SNAPSHOT")
    return {
        **tracing,
        **dict.fromkeys(graphs, "nonsense"),
        **dict.fromkeys(proxies, url),
        **model,
        **dict.fromkeys(certificates, "/nonexistent/roots.pem"),
        **libpq,
        **dict.fromkeys(("NO_PROXY", "no_proxy")),
    }


def locked_certificate(home: Path) -> Path:
    """A home with a certificate where drivers of Postgres look for one, and a locked key."""
    folder = home / ".postgresql"
    folder.mkdir()
    for name in ("postgresql.crt", "postgresql.key"):
        (folder / name).write_text("takes a password\n")
        (folder / name).chmod(0o600)
    return home
