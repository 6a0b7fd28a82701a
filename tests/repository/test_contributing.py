"""CONTRIBUTING.md: who does what it says, word for word, has a question, and a release with it."""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

import pytest

from tests.repository.reader import STEP
from tests.support.command import run
from tests.support.project import Project, render
from tests.support.releases import commit
from tests.support.template import ROOT
from tests.update.test_release import release
from tests.variants import DEFAULTS, VARIANTS

CONCERNS = [
    "*.md",
    "Makefile",
    "copier.yml",
    "tests/rendering/test_traces.py",
]

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
QUESTION, RELEASE = "To add a question", "To make a release"
VERSION = "77.0.0"


def section(title: str) -> str:
    """A part of the guide."""
    assert f"\n## {title}\n" in GUIDE
    return GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def follow(steps: str, root: Path) -> list[str]:
    """Write what the guide says. Returns the files that it is written to."""
    files = []
    for step in STEP.finditer(steps):
        path = root / (step["new"] or step["file"])
        files.append(step["new"] or step["file"])
        if step["new"]:
            assert path.parent.is_dir()
            path.write_text(step["block"])
            continue
        lines = path.read_text().splitlines(keepends=True)
        text = step["text"].strip()
        place = next(n for n, line in enumerate(lines) if line.strip().startswith(text))
        lines.insert(place + (step["side"] == "below"), step["block"])
        path.write_text("".join(lines))
    return files


def begin_heading(changelog: Path) -> None:
    """As the guide says for where the newest heading has a date, or only repairs."""
    assert "with\n   `### Added` and `### When you update`." in section(RELEASE)
    text = changelog.read_text()
    newest = re.findall(r"^## \[.*$", text, re.MULTILINE)[0]
    if not newest.endswith("Unreleased"):
        parts = ("## [76.0.0] - Unreleased", "### Added", "### When you update", "Nothing.", newest)
        changelog.write_text(text.replace(newest, "\n\n".join(parts), 1))
    elif "\n### Added\n" not in text.split("\n## [")[1]:
        assert "which gets the part if it only repairs" in section(QUESTION)
        changelog.write_text(text.replace(newest, f"{newest}\n\n### Added", 1))


@pytest.fixture
def followed(template: Path, tmp_path: Path) -> Path:
    """A clone of the template with the question that the guide adds."""
    clone = tmp_path / "clone"
    run("git", "clone", "--quiet", "--no-tags", template, clone, cwd=tmp_path)
    if "use_example:" in (clone / "copier.yml").read_text():  # somebody tries the guide
        return clone
    begin_heading(clone / "CHANGELOG.md")
    files = follow(section(QUESTION), clone)
    blocks = re.findall(r"^```(\w+)$", section(QUESTION), re.MULTILINE)
    assert len(files) == len(blocks) - blocks.count("shell"), "each block has a place"
    commit(clone, "Add an example")
    return clone


@pytest.mark.thorough
def test_question_is_added(followed: Path, tmp_path: Path, python: Path) -> None:
    command = [sys.executable, "-m"]
    run(*command, "ruff", "format", "--check", ".", cwd=followed)
    run(*command, "ruff", "check", ".", cwd=followed)
    run(*command, "yamllint", "--strict", "copier.yml", cwd=followed)
    about = (
        "tests/repository/test_documents.py::test_readme_lists_each_question",
        "tests/rendering/test_render.py::test_variants_cover_each_pair_of_answers",
        "tests/rendering/test_combinations.py",
        "tests/rendering/test_answers.py::test_each_question_has_a_default_and_says_what_it_does",
    )
    run(*command, "pytest", "-q", *about, cwd=followed)
    for answer in (True, False):
        project = tmp_path / f"service-{answer}"
        render(followed, project, {"use_example": answer, "package_name": "desk"})
        brought = [p for p in project.rglob("*example.py") if "harness" not in p.parts]
        assert len(brought) == 2 * answer
    service = Project.read(tmp_path / "service-True", python)
    service.pytest("--no-cov", "tests/unit/test_example.py", passed=1)


def test_release_is_made(followed: Path) -> None:
    (example,) = re.findall(r"`## \[2\.1\.0\] - (\d{4}-\d\d-\d\d)` in place of `Unreleased`", GUIDE)
    assert date.fromisoformat(example)
    changelog = followed / "CHANGELOG.md"
    (heading, *_) = re.findall(r"^## \[.*$", changelog.read_text(), re.MULTILINE)
    dated = f"## [{VERSION}] - {date.today().isoformat()}"
    changelog.write_text(changelog.read_text().replace(heading, dated, 1))
    commit(followed, f"Release {VERSION}")
    assert "`git push origin main 2.1.0`" in section(RELEASE)
    said = release(followed, VERSION, status=0).output.strip().splitlines()[-1]
    assert said == f"tagged {VERSION}. What next: git push origin main {VERSION}"
    assert "`use_example`: an example." in release(followed, "--notes", VERSION, status=0).output


def test_folders_of_the_map_are_those_that_are_there() -> None:
    listed = re.findall(r"^\| `(tests/\w+)` \|", section("The map"), re.MULTILINE)
    there = {
        path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*/__init__.py")
    }
    assert set(listed) == there
    for path in re.findall(r"^\| `([^`]+)`", section("The map"), re.MULTILINE):
        assert (ROOT / path).exists(), path


def test_commands_and_paths_are_there() -> None:
    makefiles = (ROOT / "Makefile", ROOT / "template" / "Makefile.jinja")
    targets = {t for path in makefiles for t in re.findall(r"^([a-z-]+):", path.read_text(), re.M)}
    code = re.findall(r"`[^`]*`|^make .*$", GUIDE, re.MULTILINE)
    assert {target for text in code for target in re.findall(r"\bmake ([a-z-]+)", text)} <= targets
    for path in re.findall(r"\btests/[\w/]+(?:\.py)?", GUIDE):
        assert any((base / path).exists() for base in (ROOT, ROOT / "template")), path


def test_numbers_of_the_example_are_those_of_the_defaults() -> None:
    now = VARIANTS.get("no example", DEFAULTS)
    assert f'"no example": Variant({now.unit}, {now.integration}, skipped=LLM,' in GUIDE
    assert f"`{now.unit}` to `{now.unit + 1}`" in GUIDE


def test_each_decision_says_what_else_was_tried_and_what_decided() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    decisions = re.split(r"^## \d+\. ", design, flags=re.MULTILINE)[1:]
    assert len(decisions) == 10
    for decision in decisions:
        title = decision.partition("\n")[0]
        assert "\n*Instead*: " in decision, title
        _, _, decided = decision.partition("\n*What decided*: ")
        assert re.search(r"`(?:make|grep|du|cat) ", decided), f"{title}: measured by what?"
        for path in re.findall(r"\btests/[\w/.]+\w", decision):
            assert any((base / path).exists() for base in (ROOT, ROOT / "template")), path
