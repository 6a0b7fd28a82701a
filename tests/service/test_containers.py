"""The image and `compose.yaml`, built and run by Docker where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import Render
from tests.support.command import Finished
from tests.support.postgres import reserved_port
from tests.support.project import Project
from tests.support.running import SECRET, Client
from tests.support.tiers import slow
from tests.variants import ALL_OFF, OTHER_NAMES

CONCERNS = ["template/*Dockerfile*", "template/compose.yaml.jinja", "template/.dockerignore"]

NAME = f"trial-{os.getpid()}"
PASSWORD = "it's $HOME @:/?#%41"

pytestmark = [
    slow,
    pytest.mark.skipif(
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "ls"], capture_output=True).returncode != 0,
        reason="no Docker that answers, or it has no Compose",
    ),
]


def compose(project: Project, *command: str, status: int | None = 0) -> Finished:
    """What Compose says."""
    return project.run("docker", "compose", *command, timeout=900, status=status)


@pytest.fixture(params=[{}, {**ALL_OFF, **OTHER_NAMES}], ids=["defaults", "all off"])
def unstarted(
    request: pytest.FixtureRequest, rendered: Render, tmp_path: Path
) -> Iterator[tuple[Project, Client]]:
    """A checkout that only its owner may read, on a port and under a name of its own."""
    project = rendered(**request.param).copy_to(tmp_path / "service")
    shutil.rmtree(project.path / ".venv", ignore_errors=True)
    project.run("chmod", "-R", "go=", ".")
    example = (project.path / ".env.example").read_text()
    password = PASSWORD.replace("\\", "\\\\").replace("$", "\\$")
    given = f'{example}\nSERVICE_PASSWORD="{password}"\nJWT_SECRET={SECRET}\n'
    (project.path / ".env").write_text(given)
    path = project.path / "compose.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["name"] = NAME
    with reserved_port() as port:
        for name, service in settings["services"].items():
            service.pop("ports", None)
            if name == "service":
                service["ports"] = [f"127.0.0.1:{port}:8000"]
            if "build" in service:
                service["image"] = NAME
        path.write_text(yaml.safe_dump(settings))
        try:
            yield project, Client(f"http://127.0.0.1:{port}")
        finally:
            compose(project, "down", "--volumes", status=None)
            project.run("docker", "image", "rm", "--force", NAME, status=None)


def test_compose_runs_all_of_it(unstarted: tuple[Project, Client]) -> None:
    """Built, ready, stopped in order, and run again. The image alone refuses to start."""
    project, client = unstarted
    for _ in range(2):
        compose(project, "up", "--build", "--wait")
        status, body = client.call("GET", "/health/ready")
        assert status == 200
        assert set(body["checks"].values()) == {"ok"}
        secrets = compose(project, "exec", "-T", "service", "env").output
        assert f"PGPASSWORD={PASSWORD}\n" in secrets
        assert "POSTGRES_PASSWORD=\n" in secrets
        compose(project, "stop", "service")
        ended = compose(project, "ps", "--all", "--format", "{{.ExitCode}}", "service")
        assert ended.output.split() == ["0"]
    refused = project.run("docker", "run", "--rm", NAME, status=1)
    assert "ENVIRONMENT=production needs DATABASE_URL" in refused.output
