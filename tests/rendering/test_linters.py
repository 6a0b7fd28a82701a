"""The files that are not Python, each as the linter of its kind sees it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.conftest import Render
from tests.support.command import Finished, run
from tests.support.project import Project
from tests.support.template import ROOT

CONCERNS = [
    "template/*Dockerfile*",
    "template/*.y*ml*",
    "template/*.json*",
    "template/.dockerignore",
    "template/.squawk.toml",
    "tests/rendering/zizmor.yml",
]

DOCKERFILE = "Dockerfile"
COMPOSE = "compose.yaml"
GITHUB = ".github/workflows/ci.yml"
GITLAB = ".gitlab-ci.yml"
HOOKS = ".pre-commit-config.yaml"

SCHEMAS = {
    COMPOSE: ["vendor.compose-spec"],
    GITHUB: ["vendor.github-workflows", "custom.github-workflows-require-timeout"],
    GITLAB: ["vendor.gitlab-ci"],
}

CHECKOUT = "actions/checkout@d23441a48e516b6c34aea4fa41551a30e30af803"
OFFLINE = ["--offline", "--config", str(ROOT / "tests/rendering/zizmor.yml")]

CONFLICT = "<<<<<<< before updating\nmine\n=======\ntheirs\n>>>>>>> after updating\n"


def lint(project: Path, tool: str, *arguments: str | Path, status: int | None = 0) -> Finished:
    """Run a linter of the template's own environment in a project."""
    return run(Path(sys.executable).with_name(tool), *arguments, cwd=project, status=status)


def check_schema(project: Path, name: str, *, status: int = 0) -> None:
    """Validate one file against each of its schemas."""
    options = ["--data-transform", "gitlab-ci"] if name == GITLAB else []
    for schema in SCHEMAS[name]:
        lint(project, "check-jsonschema", "--builtin-schema", schema, *options, name, status=status)


def test_dockerfile(service: Project) -> None:
    lint(service.path, "hadolint", DOCKERFILE, f".devcontainer/{DOCKERFILE}")


def test_yaml(service: Project) -> None:
    names = [name for name, _ in service.files() if name.endswith((".yml", ".yaml"))]
    assert {COMPOSE, HOOKS} <= set(names)
    lint(service.path, "yamllint", "--strict", "-c", ROOT / ".yamllint.yaml", *names)


def test_compose_file(service: Project) -> None:
    check_schema(service.path, COMPOSE)


def test_containers_can_do_what_they_must_and_no_more(service: Project) -> None:
    compose = yaml.safe_load((service.path / COMPOSE).read_text())
    for name, container in compose["services"].items():
        # Compose writes configs that are not files into their containers, or refuses to start.
        assert container["read_only"] is not bool(container.get("configs")), name
        assert container["cap_drop"] == ["ALL"], name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        for port in container.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        added = set(container.get("cap_add", []))
        ours = name in {"service", "migrate"}
        assert added <= (set() if ours else {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"})
        if ours:
            url = urlsplit(container["environment"]["DATABASE_URL"])
            assert (url.username, url.password) == ("service", None)
            assert container["environment"]["FORWARDED_ALLOW_IPS"]
            assert container["environment"]["POSTGRES_PASSWORD"] == ""  # else it comes by .env
    lines = (service.path / DOCKERFILE).read_text().splitlines()
    assert "USER 10001" in lines
    assert "ENV FORWARDED_ALLOW_IPS=127.0.0.1" in lines
    assert "ENV ENVIRONMENT=production" in lines


def test_all_that_the_image_has_is_read_by_others(rendered: Render, tmp_path: Path) -> None:
    """Files are copied with the modes of the checkout."""
    service = rendered()
    text = (service.path / DOCKERFILE).read_text()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text.rpartition("FROM ")[2], re.MULTILINE)
    for name in " ".join(copied).split():
        service.run("cp", "-r", name, tmp_path)
    service.run("chmod", "-R", "u=rwX,go=", *tmp_path.iterdir())
    (command,) = re.findall(r"^RUN (.*compileall.*)$", text, re.MULTILINE)
    env = {"PATH": f"{service.python.parent}:/usr/bin:/bin"}
    run("sh", "-euc", command, cwd=tmp_path, env=env)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o004, path


@pytest.mark.parametrize(("ci", "name"), [("github", GITHUB), ("gitlab", GITLAB)])
def test_ci_file(ci: str, name: str, rendered: Render) -> None:
    check_schema(rendered(ci=ci).path, name)


def test_github_workflow_is_safe(rendered: Render) -> None:
    project = rendered(ci="github").path
    lint(project, "zizmor", *OFFLINE, GITHUB)
    if shutil.which("actionlint"):  # its package downloads the binary, so it is not among ours
        run("actionlint", GITHUB, cwd=project)


def test_commit_hooks(project: Project) -> None:
    lint(project.path, "pre-commit", "validate-config")
    for hook, planted, text in [
        ("conflict-markers", "AGENTS.md", CONFLICT),
        ("rejected-hunks", "AGENTS.md.rej", "x\n"),
    ]:
        project.run("git", "init", "--quiet")
        project.run("git", "add", "--all")
        run_hook = ("pre-commit", "run", "--all-files", hook)
        lint(project.path, *run_hook)
        path = project.path / planted
        path.write_text((path.read_text() if path.exists() else "") + text)
        project.run("git", "add", "--all")
        assert planted in lint(project.path, *run_hook, status=1).output


@pytest.mark.parametrize(
    ("name", "good", "bad", "linter"),
    [
        (DOCKERFILE, "USER 10001", "USER 10001\nRUN cd /tmp", ["hadolint"]),
        (
            COMPOSE,
            "condition:",
            "conditions:",
            ["check-jsonschema", "--builtin-schema", *SCHEMAS[COMPOSE]],
        ),
        (
            GITHUB,
            "runs-on:",
            "runs_on:",
            ["check-jsonschema", "--builtin-schema", SCHEMAS[GITHUB][0]],
        ),
        (GITHUB, CHECKOUT, "actions/checkout@v6", ["zizmor", *OFFLINE]),
        (COMPOSE, "\nvolumes:", " \nvolumes:", ["yamllint", "--strict"]),
    ],
)
def test_linter_refuses_planted_fault(
    name: str, good: str, bad: str, linter: list[str], project: Project
) -> None:
    """Else a linter that looks at nothing would pass above."""
    path = project.path / name
    text = path.read_text()
    assert good in text
    path.write_text(text.replace(good, bad))
    assert lint(project.path, *linter, name, status=None).status not in (0, 2, 3)
