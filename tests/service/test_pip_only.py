"""A service's environment: made by pip where there is no uv, or moved with the service."""

from __future__ import annotations

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.command import run
from tests.support.embedded import remove_clusters
from tests.support.project import Project
from tests.support.template import ROOT
from tests.variants import ALL_OFF, VARIANTS

CONCERNS = ["Makefile", "template/Makefile.jinja", "template/pyproject.toml.jinja"]


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


@pytest.mark.thorough
@pytest.mark.parametrize("whose", ["template", "service"])
def test_shell_that_tells_pip_where_to_install(
    whose: str, rendered: Render, tmp_path: Path
) -> None:
    """Such a shell is a user's of a shared machine. What stands for uv needs no index."""
    with zipfile.ZipFile(tmp_path / "uv-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", "#!/bin/sh\n")
        wheel.writestr("uv-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 1\n")
        wheel.writestr("uv-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("uv-1.dist-info/RECORD", "")
    project = ROOT if whose == "template" else rendered(**ALL_OFF).path
    shutil.copy(project / "Makefile", tmp_path)
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    elsewhere = {
        name: str(tmp_path / "elsewhere") for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    }
    strict = {"PYTHONWARNINGS": "error"}  # of which pip gives some
    env = {"PATH": path_without_uv(), **index, **elsewhere, **strict, "PIP_USER": "1"}
    run("make", f"PYTHON={sys.executable}", ".venv/bin/uv", cwd=tmp_path, env=env)
    assert (tmp_path / ".venv/bin/uv").exists()


# As images and workspaces of other projects have them.
OTHERWISE = {
    **dict.fromkeys(("UV_NO_DEV", "UV_NO_DEFAULT_GROUPS", "UV_NO_PROJECT"), "1"),
    "UV_NO_GROUP": "dev",
    **dict.fromkeys(("UV_PROJECT", "UV_WORKING_DIR"), "/"),
}


@pytest.mark.thorough
def test_shell_that_tells_uv_what_to_leave_out(rendered: Render, tmp_path: Path) -> None:
    project = rendered(**ALL_OFF).copy_to(tmp_path / "service")
    env = {**OTHERWISE, "PATH": f"{Path(os.environ['UV']).parent}:{os.environ['PATH']}"}
    project.run("make", "-s", "test", "ARGS=--no-cov --markers", env=env)
    assert (project.path / ".venv/bin/pytest").exists()
    shutil.copy(ROOT / "Makefile", tmp_path)
    shown = "show-shell: ; @env\ninclude Makefile\n"
    (tmp_path / "shown.mk").write_text(shown)
    env |= {"UV_FROZEN": "1", "UV_LOCKED": "1"}
    seen = run("make", "-s", "-f", "shown.mk", cwd=tmp_path, env=env).output
    assert {name for name in env if f"{name}=" in seen} == {"PATH"}


@pytest.mark.thorough
def test_service_that_was_moved(rendered: Render, tmp_path: Path) -> None:
    """The scripts of its environment name the folder in which that was made."""
    project = rendered(**ALL_OFF).copy_to(tmp_path / "service")
    project.run(project.python, "-m", "venv", "--without-pip", ".venv")
    (packages,) = project.path.glob(".venv/lib/python*/site-packages")
    shared = project.python.parents[1] / packages.relative_to(project.path / ".venv")
    (packages / "shared.pth").write_text(f"{shared}\n")
    script = project.path / ".venv/bin/pytest"
    script.write_text("#!/where/it/was/.venv/bin/python\n")
    script.chmod(0o755)
    path = f"{Path(os.environ['UV']).parent}:{os.environ['PATH']}"
    env = {"UV_NO_SYNC": "1", "PATH": path, "PYTHONOPTIMIZE": "1"}
    project.run("make", "-s", "test", "ARGS=--no-cov --markers", env=env)
    shown = project.run("make", "-n", "check", "format", "migrate", "seed", env=env).output
    assert {*re.findall(r"uv\"? run (\S+)", shown)} == {"python", "ruff", "squawk"}


def test_uv_that_is_too_old_is_not_used(rendered: Render, tmp_path: Path) -> None:
    project = rendered(**ALL_OFF)
    old = tmp_path / "uv"
    old.write_text("#!/bin/sh\n[ $# -lt 2 ]\n")  # to --group it says no
    old.chmod(0o755)
    env: dict[str, str | None] = {"PATH": f"{tmp_path}:{path_without_uv()}"}
    shown = project.run("make", "-n", "-W", ".venv/bin/uv", "test", env=env).output
    assert ".venv/bin/uv run python -m pytest" in shown


def test_path_that_alembic_can_not_read_is_told(rendered: Render, tmp_path: Path) -> None:
    project = rendered(**ALL_OFF).copy_to(tmp_path / "100% service")
    said = project.run("make", "run", status=2).output
    assert "a % in the path" in said
    assert str(project.path) in said
