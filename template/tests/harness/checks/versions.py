"""The oldest versions with which the harness works, each tried.

What is missing or too old is said in one sentence, before it fails somewhere else. Python's own is
asked for in `tests/harness/__init__.py`, by code that older ones can read.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version

from ..errors import HarnessError
from ..layout import HARNESS

PLUGINS = {"pytest": "8.4", "pytest-asyncio": "1.4"}
DRIVERS = {"psycopg": "3.2.11"}
IF_INSTALLED = {"SQLAlchemy": "2.0", "asyncpg": "0.27"}
REDIS = {"redis": "5.0.1"}


def check_plugins() -> None:
    """What pytest has loaded by the time that `tests/__init__.py` is imported.

    Raises:
        HarnessError: something is missing or too old.
    """
    for name, oldest in PLUGINS.items():
        module = sys.modules.get(name.replace("-", "_"))
        if module is None and importlib.util.find_spec(name.replace("-", "_")):
            raise HarnessError(
                f"{HARNESS} needs {name}, and an option of this run, or "
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD, turns it off."
            )
        check(name, oldest, getattr(module, "__version__", None))


def check_installed(wanted: dict[str, str]) -> None:
    """What a run with a database, or with Redis, needs besides, and what of the service it works with.

    Raises:
        HarnessError: something is missing or too old.
    """
    for name, oldest in (wanted | IF_INSTALLED).items():
        check(name, oldest, installed(name))


def installed(name: str) -> str | None:
    """The version of what is installed of something."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check(name: str, oldest: str, found: str | None) -> None:
    """Compare what is installed of something with what the harness needs.

    Raises:
        HarnessError: it is older, or there is none, and it is not one that a service may do without.
    """
    if found is None and name in IF_INSTALLED:
        return
    if found is None or _numbers(found) < _numbers(oldest):
        here = f"there is {found}" if found else "there is none"
        raise HarnessError(
            f"{HARNESS} needs {name} {oldest} or newer, and {here} in {sys.prefix}: "
            f'install "{name}>={oldest}".'
        )


def _numbers(text: str) -> list[int]:
    """Of a release: what stands behind, as in 2.1.0b1, does not count."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return [int(number) for number in found[0].split(".")] if found else []
