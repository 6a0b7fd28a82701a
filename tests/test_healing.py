"""Whatever state a run before left: the next one is green and says what it healed."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import embedded
from tests.support.command import overlaid
from tests.support.machine import MARK, kill, linux_only, new_mark, started_with
from tests.support.project import Project
from tests.test_service_suite import golden_story
from tests.variants import ONE_FILE

FILES, PASSED = ONE_FILE


@pytest.fixture
def seeded(project: Project) -> Project:
    """A project of this test's own whose golden database is there."""
    assert "built" in next_run(project)
    return project


def next_run(project: Project) -> str:
    """Run some tests, green, and return what the header says about the golden database."""
    return golden_story(project.pytest(*FILES, passed=PASSED))


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text that a file holds once."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DROP TABLE customers CASCADE", "customers"),
        ("DELETE FROM knowledge_chunks", "knowledge_chunks"),
        ("UPDATE customers SET full_name = 'Mallory'", "customers"),
        ("ALTER TABLE customers ADD COLUMN stray text", "customers"),
        ("CREATE TABLE stray (id int)", "stray"),
    ],
)
def test_damaged_golden_database_is_built_anew(statement: str, what: str, seeded: Project) -> None:
    embedded.damage(seeded, statement)
    story = next_run(seeded)
    assert story.startswith("built in ")
    assert "damaged" in story
    assert what in story
    assert next_run(seeded) == "reused"


def test_edited_model_is_noticed(seeded: Project) -> None:
    model = seeded.package / "models" / "customer.py"
    edit(model, "    full_name: ", "    nickname: Mapped[str | None]\n    full_name: ")
    assert re.search(r"built in .*: .*changed", next_run(seeded))
    assert next_run(seeded) == "reused"


@pytest.mark.parametrize("name", ["app/seed_database.py", "ingest.py", "knowledge/new.md"])
def test_edited_seed_is_noticed(name: str, seeded: Project) -> None:
    path = seeded.path / name
    before = path.read_text() if path.exists() else "# A new page\n\nWith a text.\n"
    path.write_text(f"{before}# edited\n")
    assert re.search(rf"built in .*: .*{name}.*changed", next_run(seeded))
    path.write_text(f"{before}# edited\n")
    assert next_run(seeded) == "reused", "the time of a file says nothing"


@linux_only
@pytest.mark.parametrize("with_server", [False, True], ids=["run", "run and server"])
def test_run_killed_while_it_seeds_is_healed(with_server: bool, project: Project) -> None:
    seeder = project.package / "seed_database.py"
    slow = "import os, time\n\ntime.sleep(float(os.environ.get('SLEEP', '0')))\n"
    seeder.write_text(slow + seeder.read_text())
    mark = new_mark()
    run = subprocess.Popen(
        [str(project.python), "-m", "pytest", *FILES],
        cwd=project.path,
        env=overlaid({MARK: mark, "SLEEP": "600"}),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for_process(mark, "seed_database")
        kill(started_with(mark) if with_server else [run.pid])
        run.wait()
        outcome = project.pytest(*FILES, passed=PASSED)
        assert golden_story(outcome).endswith("there was none")
        assert outcome.line("swept: 1 ")
        assert all(name.startswith("app_g_") for name in embedded.databases(project))
        assert next_run(project) == "reused"
    finally:
        kill(started_with(mark))


def wait_for_process(mark: str, name: str) -> None:
    """Wait until a process with this name in its command line runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(name in command for command in started_with(mark).values()):
            return
        time.sleep(0.05)
    raise AssertionError(f"no process {name}")
