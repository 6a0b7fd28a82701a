"""Whatever state a run before left: the next one is green and says what it healed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import embedded
from tests.support.command import overlaid
from tests.support.machine import MARK, kill, linux_only, new_mark, started_with
from tests.support.project import Outcome, Project
from tests.support.small import wait_until
from tests.support.tiers import first

CONCERNS = ["*/harness/golden/*"]

# A test that sees what the seed commands stored.
PROBE = """\
from sqlalchemy import func, select

from app.models import Customer, KnowledgeChunk


async def test_database_is_seeded(db_session):
    for model in (Customer, KnowledgeChunk):
        assert await db_session.scalar(select(func.count()).select_from(model)) > 1
    assert "Mallory" not in await db_session.scalars(select(Customer.full_name))
"""

OPTIONS = ["--no-cov", "tests/test_probe.py"]

# What is done to the golden database behind the harness's back, and what the header names.
DAMAGES = {
    "DROP TABLE customers CASCADE": "customers",
    "DELETE FROM knowledge_chunks": "knowledge_chunks",
    "UPDATE customers SET full_name = 'Mallory'": "customers",
}


# What is edited at a time, and what the header says of it.
SOURCES = [
    {"app/seed_database.py": "app/seed_database.py", "knowledge/new.md": "knowledge"},
    {"ingest.py": "ingest.py", "migrations/env.py": "migrations"},
]


@pytest.fixture
def probed(lean: Project) -> Project:
    """A project that only runs the probe."""
    (lean.path / "tests" / "test_probe.py").write_text(PROBE)
    return lean


def next_run(project: Project) -> Outcome:
    """Run the probe, green."""
    return project.pytest(*OPTIONS, passed=1)


@pytest.mark.thorough
def test_damaged_golden_database_is_built_anew(probed: Project) -> None:
    golden, story = next_run(probed).golden()
    assert re.fullmatch(r"built in [\d.]+ s: there was none", story)
    for statement, what in DAMAGES.items():
        embedded.damage(probed, golden, statement)
        golden, story = next_run(probed).golden()
        assert re.fullmatch(rf"built in .*: .*damaged.*{what}.*", story), statement
    assert next_run(probed).golden() == (golden, "reused")


def test_edited_sources_are_noticed(probed: Project) -> None:
    next_run(probed)
    for edited in SOURCES:
        for name in edited:
            source = probed.path / name
            before = source.read_text() if source.exists() else "# New\n\nA page.\n"
            source.write_text(f"{before}# edited\n")
        _, story = next_run(probed).golden()
        named = re.fullmatch(r"built in .*: (.*) changed", story)
        assert named
        assert set(named[1].split(", ")) == set(edited.values())
    (probed.path / "ingest.py").touch()
    assert next_run(probed).golden()[1] == "reused", "the time of a file says nothing"


@pytest.mark.thorough
def test_what_a_recipe_leads_to_is_noticed(probed: Project) -> None:
    """A module beside a script, where Python looks first, and a program that is no Python."""
    folder, conftest = probed.path / "scripts", probed.path / "tests/conftest.py"
    folder.mkdir()
    (folder / "load.py").write_text("import rows\n")
    (folder / "rows.py").write_text("ROWS = 1\n")
    recipe = conftest.read_text().replace('"migrations"', '"migrations", "scripts/load.py"')
    recipe = recipe.replace("commands=[", 'commands=[["true"], ')
    conftest.write_text(recipe)
    next_run(probed)
    (folder / "rows.py").write_text("ROWS = 2\n")
    assert next_run(probed).golden()[1].endswith(": scripts/load.py changed")
    conftest.write_text(recipe.replace('"true"', '"echo"'))
    assert next_run(probed).golden()[1].endswith(": the recipe changed")


@pytest.mark.slow
def test_linked_sources(probed: Project, tmp_path: Path) -> None:
    """What lies elsewhere counts as well. An editor's mark of what is edited leads nowhere."""
    elsewhere, migrations = tmp_path / "elsewhere", probed.path / "migrations"
    elsewhere.mkdir()
    (migrations / "shared").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(migrations)
    (migrations / ".#env.py").symlink_to("ada@desk.4711:1796000000")
    next_run(probed)
    (elsewhere / "rows.sql").write_text("SELECT 1")
    assert next_run(probed).golden()[1].endswith(": migrations changed")
    assert next_run(probed).golden()[1] == "reused"


@pytest.mark.thorough
def test_edited_model_is_noticed(probed: Project) -> None:
    next_run(probed)
    model = probed.package / "models" / "customer.py"
    column = "    full_name: "
    assert model.read_text().count(column) == 1
    edited = model.read_text().replace(column, f"    nickname: Mapped[str | None]\n{column}")
    model.write_text(edited)
    _, story = next_run(probed).golden()
    assert re.fullmatch(r"built in .*: .*the models.* changed", story)


@linux_only
@pytest.mark.parametrize("with_server", first(1, [False, True]), ids=["run", "run and server"])
def test_run_killed_while_it_seeds_is_healed(with_server: bool, probed: Project) -> None:
    seeder = probed.package / "seed_database.py"
    slow = "import os, time\n\ntime.sleep(float(os.environ.get('SLEEP', '0')))\n"
    seeder.write_text(slow + seeder.read_text())
    mark = new_mark()
    run = subprocess.Popen(
        [str(probed.python), "-m", "pytest", *OPTIONS],
        cwd=probed.path,
        env=overlaid({MARK: mark, "SLEEP": "600"}),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: any("seed_database" in line for line in started_with(mark).values()),
            "the seeder runs",
            timeout=60,
        )
        kill(started_with(mark) if with_server else [run.pid])
        run.wait()
        outcome = next_run(probed)
        golden, story = outcome.golden()
        assert story.endswith("there was none")
        assert "swept: 1 " in outcome.output
        assert embedded.databases(probed) == [golden]
    finally:
        kill(started_with(mark))
