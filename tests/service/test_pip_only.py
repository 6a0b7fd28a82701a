"""A service whose machine has pip and no uv."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.project import Project
from tests.variants import VARIANTS

CONCERNS = ["template/Makefile.jinja", "template/pyproject.toml.jinja"]


def path_without_uv() -> str:
    """PATH without the folders that hold uv."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(f for f in folders if not shutil.which("uv", path=f))


@pytest.mark.slow
def test_service_is_installed_and_tested_with_pip_alone(rendered: Render, tmp_path: Path) -> None:
    variant = VARIANTS["all off"]
    project = rendered(**variant.answers).copy_to(tmp_path / "service")
    env: dict[str, str | None] = {"PATH": path_without_uv(), "UV": None}
    project.run(sys.executable, "-m", "venv", ".venv", env=env)
    python = project.path / ".venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    project.run(*pip, "--upgrade", "pip", env=env)  # groups need pip 25.1
    project.run(*pip, "--editable", ".", "--group", "harness", env=env, timeout=600)
    own = Project(project.path, project.answers, Path(python))
    own.pytest("--no-cov", env=env, passed=variant.passed)
    remove_clusters(tmp_path)
