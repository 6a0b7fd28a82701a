"""A source folder that can't be written to: a pytest plugin for what others would write there.

pytest's cache is done without. What pytest-cov measures goes to the folder of the tests' server.
"""

from __future__ import annotations

import os
import warnings

import pytest

from .. import environment
from ..files import private


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # pytest says that its cache can't be written, and warnings may be errors: while plugins are
    # configured, and later.
    warnings.simplefilter("ignore", pytest.PytestCacheWarning)
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")
    coverage = config.pluginmanager.get_plugin("_cov")
    controller = getattr(coverage, "cov_controller", None)  # none in a worker, which starts later
    if controller is None or "COVERAGE_FILE" in os.environ or _can_write(config.rootpath):
        return
    home = private(environment.current.home)
    os.environ["COVERAGE_FILE"] = str(home / "coverage")
    controller.cov.stop()
    controller.start()  # anew: nothing of the service was imported so far


def _can_write(folder: os.PathLike[str]) -> bool:
    try:
        return os.access(folder, os.W_OK) and not os.statvfs(folder).f_flag & os.ST_RDONLY
    except OSError:
        return False
