"""What is rendered: complete, clean text files, whatever the answers."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.support.command import run
from tests.support.project import ANSWERS_FILE, CODE_ANSWERS, Project
from tests.support.project import files as files_of
from tests.support.sums import SUMS, sums
from tests.support.template import ROOT, working_files
from tests.variants import FEATURES, OTHER_NAMES, VARIANTS

CONCERNS = ["template/*", "*/.gitattributes", "copier.yml", ".gitattributes"]

# As the template writes it. `${{ … }}` is GitHub's own, in its workflows.
JINJA = re.compile(r"(?<!\$)\{\{[- ]|\{%[- ]|\{#[- ]")
HARNESS = "tests/harness"


def test_variants_cover_each_pair_of_answers() -> None:
    chosen = [
        {feature: v.answers.get(feature, True) for feature in FEATURES} for v in VARIANTS.values()
    ]
    for one, other in itertools.combinations(FEATURES, 2):
        assert {(answers[one], answers[other]) for answers in chosen} == {
            (a, b) for a in (True, False) for b in (True, False)
        }


def test_render_is_clean_text(combination: Project) -> None:
    untidy = [fault for name, text in texts(combination) for fault in faults(name, text)]
    assert not untidy, "\n".join(untidy)


def test_harness_is_the_same_in_each_render(combination: Project, template: Path) -> None:
    source = template / "template"
    ours = {
        p.relative_to(source).as_posix(): p for p in (source / HARNESS).rglob("*") if p.is_file()
    }
    theirs = {name: path for name, path in combination.files() if name.startswith(f"{HARNESS}/")}
    assert ours.keys() == theirs.keys(), "files of the harness are copied, never rendered"
    changed = [name for name in ours if ours[name].read_bytes() != theirs[name].read_bytes()]
    assert not changed


def test_sums_are_those_of_the_files(template: Path) -> None:
    assert (template / SUMS).read_text() == sums(template), "run `make format`"


@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_ci_files_follow_the_answer(ci: str, rendered: Render) -> None:
    names = {name for name, _ in rendered(ci=ci).files()}
    assert (".github/workflows/ci.yml" in names) == (ci == "github")
    assert (".gitlab-ci.yml" in names) == (ci == "gitlab")
    assert any(name.startswith(".github/") for name in names) == (ci == "github")


def test_names_are_used_everywhere(rendered: Render) -> None:
    """Nothing of the default package's name stays in a service with another."""
    project = rendered(**OTHER_NAMES)
    assert (project.package / "main.py").is_file()
    assert not (project.path / "app").exists()
    default = re.compile(
        r"\bapp[./](?!\*)[a-z_]+\b(?! =)|(?:from|(?<!\.main )import|package|=) ?app\b"
    )
    stray = [
        f"{name}: {line.strip()}"
        for name, text in texts(project)
        for line in text.splitlines()
        if default.search(line)
        and not re.search(
            r"\bapp\.\w+\(|\bapp\.(?:dependency_overrides|router|state)\b|self\.app\b", line
        )
    ]
    assert not stray, "\n".join(stray)
    assert OTHER_NAMES["project_name"] in (project.path / "README.md").read_text()


def texts(project: Project) -> list[tuple[str, str]]:
    """Each rendered file with its text; a file that isn't UTF-8 fails here."""
    return [(name, path.read_bytes().decode("utf-8")) for name, path in project.files()]


def faults(name: str, text: str) -> list[str]:
    """What is wrong with a rendered file as text."""
    found = []
    if match := JINJA.search(text):
        found.append(f"leftover Jinja: {text[match.start() :].splitlines()[0]}")
    if JINJA.search(name):
        found.append("leftover Jinja in the name")
    if "\r" in text or ("\t" in text and name.endswith(".py")):
        found.append("carriage return or tab")
    if re.search(r"[ \t]$", text, re.MULTILINE):
        found.append("white space at the end of a line")
    if text and not text.endswith("\n"):
        found.append("no newline at the end")
    if text.startswith("\n") or text.endswith("\n\n"):
        found.append("blank line at an end")
    blanks = "\n\n\n\n" if name.endswith((".py", ".py.mako")) else "\n\n\n"
    if blanks in text:
        found.append("blank lines in a row")
    if not text.strip() and not name.endswith(("__init__.py", "py.typed", ".gitkeep")):
        found.append("empty")
    if name not in (ANSWERS_FILE, CODE_ANSWERS) and str(ROOT) in text:
        found.append("a path of the machine that rendered it")
    return [f"{name}: {fault}" for fault in found]


def test_line_ends_whatever_git_makes_of_them(rendered: Render, tmp_path: Path) -> None:
    """On a machine whose git turns them into CRLF: of the template, and of what it renders."""
    crlf = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    adopted = tmp_path / "adopted"
    shutil.copytree(rendered().path / HARNESS, adopted / HARNESS)
    for number, source in enumerate((ROOT, rendered().path, adopted)):
        repository, clone = tmp_path / f"repository-{number}", tmp_path / f"clone-{number}"
        listed = working_files() if source == ROOT else [*files_of(source)]
        names = [name for name in listed if not (source / name).is_symlink()]
        for name in names:
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, repository / name)
        run("git", "init", "--quiet", cwd=repository)
        run("git", "add", "--all", "--force", cwd=repository)
        run("git", "commit", "--quiet", "--message", "Everything", cwd=repository)
        run("git", *crlf, "clone", "--quiet", repository, clone, cwd=tmp_path)
        changed = [n for n in names if (clone / n).read_bytes() != (source / n).read_bytes()]
        assert names
        assert not changed
