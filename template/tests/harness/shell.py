"""What the shell exports for other programs, or for the service itself, and what tests see of it.

Tests connect to servers of this machine, and to those that they were given. So the shell's proxies,
certificates and endpoints can only mislead them, and so can libpq's variables, unless the server is
one of the user's own. A test that means to leave the machine gets them back: see `checks/offline.py`.

What is said here of libraries that send what they see elsewhere only saves them the attempt. That
nothing leaves is seen to by `checks/offline.py`.
"""

from __future__ import annotations

import ast
import json
import os
import re
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from .errors import HarnessError

_PROXIES = re.compile(r"(?i)(?:.*_)?proxy")

_CERTIFICATES = {
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
}

# Where models are asked, and as whom; not the keys, without which a client may not even start.
_ENDPOINTS = re.compile(
    "(?:AZURE_)?OPENAI_(?:BASE_URL|ENDPOINT|API_(?:BASE|TYPE|VERSION)|ORG_ID|ORGANIZATION|PROJECT_ID|CUSTOM_HEADERS)"
    "|ANTHROPIC_BASE_URL"
)

# How far LangGraph lets a graph run, which it reads when it is imported.
_LIMITS_OF_GRAPHS = re.compile("LANGGRAPH_(?:DEFAULT|DELTA)_.+")

# libpq's own, as in PGHOST, PGSSLMODE; not a service's, as in PG_HOST.
_LIBPQ = re.compile(r"PG[A-Z]+|PGCONNECT_TIMEOUT")

_PAST_THE_URL = {"PGHOSTADDR", "PGSERVICE"}
"""Where these are set, psql's library connects elsewhere than a URL says."""

_SENDING = {"SENTRY_DSN", "SENTRY_SPOTLIGHT", "LANGCHAIN_TRACING", "LANGSMITH_RUNS_ENDPOINTS"}

# Each by its own switch. `prepare()` can set them otherwise: OTEL_SDK_DISABLED="false" for tests of
# spans, which an exporter in memory keeps.
_OFF = {
    "LANGSMITH_TRACING": "false",
    "LANGSMITH_TRACING_V2": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGFUSE_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "LOGFIRE_SEND_TO_LOGFIRE": "false",
    "DD_TRACE_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "ELASTIC_APM_ENABLED": "false",
    "NEW_RELIC_MONITOR_MODE": "false",
    "DO_NOT_TRACK": "1",
}

_DIRECT = {
    # None, not even one that the system itself names.
    "NO_PROXY": "*",
    "no_proxy": "*",
    # gRPC connects in C. To all but this machine it goes by a proxy that is not there.
    "grpc_proxy": "http://127.0.0.1:1",
    "no_grpc_proxy": "localhost,127.0.0.1,::1",
}

_OF_THE_SYSTEM = {"HOME", "LOGNAME", "PATH", "PWD", "SHELL", "TERM", "TMPDIR", "USER"}
"""A setting may have one of these names; other programs read them as well (POSIX, Base Definitions, 8)."""

_KEPT = "HARNESS_SHELL"


def settle(*, libpq: bool, certificates: bool) -> None:
    """Let this process and those that it starts see what tests may see.

    Args:
        libpq: leave its variables: the tests were given a Postgres of the user's own.
        certificates: leave those that are there: the tests were given servers of the user's own.
    """
    kept = _kept()  # workers inherit an environment already settled
    for name, value in [*os.environ.items()]:
        if _misleads(name, value, libpq, certificates):
            kept[name] = os.environ.pop(name)
    os.environ[_KEPT] = json.dumps(kept)
    os.environ.update(_OFF)
    os.environ.update(_DIRECT)


def of_the_user() -> dict[str, str | None]:
    """The variables by which the user's shell reaches other machines, as they were.

    None for those that were not set.
    """
    others = {n for n in _kept() if _LIBPQ.fullmatch(n) or n in _SENDING}
    return {**dict.fromkeys(_DIRECT), **{n: v for n, v in _kept().items() if n not in others}}


def settings_in(module: str) -> list[str]:
    """The settings of a service: the fields of the classes in a module whose base has a name that ends in `Settings`.

    It is not imported, since that would read the variables.

    Raises:
        HarnessError: there is no such module.
    """
    package, *rest = str(module).split(".")
    if not package.isidentifier():
        raise HarnessError(f"prepare(settings={module!r}): it takes the name of a module.")
    spec = find_spec(package)
    if spec is None:  # whoever imports it will be told
        return []
    for part in rest:
        spec = spec and PathFinder.find_spec(part, spec.submodule_search_locations or [])
    origin = (spec and spec.origin) or ""
    if not origin.endswith(".py"):
        raise HarnessError(f"prepare(settings={module!r}): there is no such module of Python.")
    classes: set[str] = set()
    names: list[str] = []
    for node in ast.walk(ast.parse(Path(origin).read_bytes())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if bases & classes or any(base.endswith("Settings") for base in bases):
                classes.add(node.name)
                fields = [n.target for n in node.body if isinstance(n, ast.AnnAssign)]
                names += [field.id for field in fields if isinstance(field, ast.Name)]
    return [name for name in names if name.upper() not in _OF_THE_SYSTEM]


def _kept() -> dict[str, str]:
    kept: dict[str, str] = json.loads(os.environ.get(_KEPT, "{}"))
    return kept


def _misleads(name: str, value: str, libpq: bool, certificates: bool) -> bool:
    if value == _DIRECT.get(name):  # by us
        return False
    if name in _CERTIFICATES:
        return not (certificates and os.path.exists(value))
    if _LIBPQ.fullmatch(name):
        return not libpq or name in _PAST_THE_URL
    return name in _SENDING or any(
        kind.fullmatch(name) for kind in (_PROXIES, _ENDPOINTS, _LIMITS_OF_GRAPHS)
    )
