"""FAULTS 4, 5, 6, 10: what happens while a golden database is built, and by how many at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Render
from tests.support.embedded import remove_clusters
from tests.support.machine import kill, linux_only, started_with
from tests.support.small import Small, complete_service, edited, passed, wait_until
from tests.support.tiers import first
from tests.variants import LEAN

CONCERNS = [
    "*/harness/golden/build.py",
    "*/harness/golden/fingerprint.py",
    "*/harness/checks/failure.py",
]

pytestmark = linux_only

NOT_BUILT = "The golden database was not built"
SEEDER = "-m app.seed_database"
BUILT = ", built in "
"""What the next run says, because nothing was published."""


@pytest.fixture(scope="module")
def broken(
    rendered: Render, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Small, dict[str, Any]]]:
    """A service with `ingest.py`, and what a build from nothing gives in it."""
    path = tmp_path_factory.mktemp("seeding") / "service"
    with complete_service(rendered(**LEAN), path) as service_and_content:
        yield service_and_content


@pytest.fixture(autouse=True)
def unseeded(small: Small) -> None:
    """Each test begins with a golden database to build."""
    small.edit_seeder()
    small.seedings()


@contextmanager
def patience(small: Small, seconds: int) -> Iterator[None]:
    """Let the recipe allow a command so many seconds."""
    conftest = small.path / "tests/conftest.py"
    text = conftest.read_text()
    assert text.count("        seeded=[") == 1
    with edited(
        conftest, text.replace("        seeded=[", f"        timeout={seconds},\n        seeded=[")
    ):
        yield


# What the seeder does, what the run says of it, and what it shows of its output.
FAILURES = {
    "fails": ("raise SystemExit(7)", "ended with status 7", "seeding, as told by"),
    "is killed": ("os.kill(os.getpid(), 9)", "ended with status -9", "seeding, as told by"),
    "prints a lot": (
        "print('x' * 79 + '\\n', end='') or [print('y' * 79) for _ in range(200_000)]\n"
        "print('the last line')\nraise SystemExit(1)",
        "ended with status 1",
        "the last line",
    ),
    "is silent and binary": (
        "os.write(1, b'\\xff\\xfe not UTF-8'); os._exit(3)",
        "ended with status 3",
        "not UTF-8",
    ),
    "fails and leaves children": (
        "import subprocess; subprocess.Popen(['sleep', '600']); raise SystemExit(2)",
        "ended with status 2",
        "seeding, as told by",
    ),
    "does nothing": ("raise SystemExit(0)", "left the table customers empty", ""),
}


@pytest.mark.parametrize(
    "failure",
    first(1, FAILURES),
)
def test_seeder_fails(failure: str, small: Small, complete: Any) -> None:
    code, says, shows = FAILURES[failure]
    output = small.red(SEED=code)
    assert small.seedings() == 1
    assert output.count(f"{says}") == 1
    assert shows in output
    assert len(output) < 10_000
    assert "Traceback" not in output
    assert not started_with(small.mark)
    small.healed(complete, says=BUILT)


LATE = """
import os, pytest, time


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop():
    if os.environ.get("PYTEST_XDIST_WORKER") == os.environ.get("LATE"):
        time.sleep(3)
    return (yield)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("late", first(1, ["nobody", "gw1"]))
def test_all_workers_tell_the_same_cause(late: str, small: Small, complete: Any) -> None:
    """One that comes when the other has gone, and has stopped the server, too."""
    conftest = small.path / "tests/conftest.py"
    with edited(conftest, f"{conftest.read_text()}{LATE}"):
        output = small.red("-n", "2", SEED="raise SystemExit(7)", LATE=late)
    assert small.seedings() == 1
    assert output.count(f"{NOT_BUILT}: a command ended with status 7") == 2
    assert output.count(SEEDER) == 2
    small.healed(complete)


@pytest.mark.slow
def test_seeder_hangs(small: Small, complete: Any) -> None:
    with patience(small, 1):
        output = small.red(SEED="time.sleep(600)")
    assert f"{NOT_BUILT}: a command did not end within 1 s" in output
    assert SEEDER in output
    assert not started_with(small.mark)
    small.healed(complete)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "text", "status", "said"),
    first(
        1,
        [
            ("ingest.py", "print('no model')\nraise SystemExit(5)\n", 5, "ingest.py\nno model"),
            ("app/seed_database.py", "this is no Python\n", 1, "SyntaxError"),
        ],
    ),
    ids=["ingest fails", "no Python"],
)
def test_edited_command_fails(
    name: str, text: str, status: int, said: str, small: Small, complete: Any
) -> None:
    with edited(small.path / name, text):
        output = small.red(SEED="time.sleep(600)")  # nobody waits for it
    assert f"{NOT_BUILT}: a command ended with status {status}" in output
    assert said in output
    assert not started_with(small.mark)
    small.healed(complete)


@pytest.mark.thorough
def test_commands_that_made_nothing(small: Small, complete: Any) -> None:
    """They succeeded in another database, where the tests would be next."""
    conftest = small.path / "tests/conftest.py"
    recipe = conftest.read_text().replace('metadata="app.models:Base.metadata"', "metadata=None")
    recipe = re.sub(r"seeded=\[.*\],", "", recipe)
    assert recipe.count("metadata=None") == 1
    with edited(conftest, recipe), edited(small.path / "ingest.py", ""):
        output = small.red(SEED="raise SystemExit(0)")
    assert f"{NOT_BUILT}: the commands succeeded, and it is as empty as before" in output
    assert "DATABASE_URL" in output
    assert "Traceback" not in output
    small.seedings()
    small.healed(complete, says=BUILT)


ANOTHER = """

from sqlalchemy import Column, Integer, MetaData, Table, Text

part = MetaData()
Table("customers", part, Column("id", Integer, primary_key=True), Column("email", Text))
other = MetaData()
Table("customers", other, Column("id", Integer, primary_key=True), Column("shoe_size", Text))
"""


@pytest.mark.slow
def test_table_of_two_metadata(small: Small, complete: Any) -> None:
    """As services have it that use two databases. What is part of another's is no second table."""
    models, conftest = small.path / "app/models/__init__.py", small.path / "tests/conftest.py"
    own = 'metadata="app.models:Base.metadata"'
    recipe = conftest.read_text()
    assert recipe.count(own) == 1
    with edited(models, models.read_text() + ANOTHER):
        both = recipe.replace(own, 'metadata=["app.models:Base.metadata", "app.models:other"]')
        with edited(conftest, both):
            output = small.red()
        assert f"{NOT_BUILT}: two metadata of the recipe have a table customers" in output
        assert "the first lacks shoe_size" in output
        assert "Traceback" not in output
        with edited(conftest, both.replace(":other", ":part")):
            small.green()
    small.seedings()
    small.healed(complete, says=BUILT)


STOCK = """

from sqlalchemy import event
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import CreateSchema

from app.database import Base


class Shelf(Base):
    __tablename__ = "shelves"
    __table_args__ = {"schema": "stock"}

    id: Mapped[int] = mapped_column(primary_key=True)


"""
LISTENS = (
    'event.listen(Base.metadata, "before_create", CreateSchema("stock", if_not_exists=True))\n'
)
FILLED = """
async def filled():
    from sqlalchemy import text
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO stock.shelves DEFAULT VALUES"))

asyncio.run(filled())
"""


@pytest.mark.slow
def test_tables_in_a_schema_of_their_own(small: Small, complete: Any) -> None:
    """What makes the schema is asked for; a table there is known as seeded by its whole name."""
    models, conftest = small.path / "app/models/__init__.py", small.path / "tests/conftest.py"
    text, recipe = models.read_text() + STOCK, conftest.read_text()
    with edited(models, text):
        output = small.red()
    assert f"{NOT_BUILT}: create_all can't make a table" in output
    assert 'schema "stock" does not exist' in output
    assert LISTENS.replace('"stock"', '"…"').strip() in output
    assert "Traceback" not in output
    asks = edited(conftest, recipe.replace('seeded=["customers"', 'seeded=["stock.shelves"'))
    with edited(models, text + LISTENS), asks:
        assert "left the table stock.shelves empty" in small.red()
        small.green(SEED=f"from app.database import engine\nimport asyncio\n{FILLED}")
        small.seedings()
    small.healed(complete, says=BUILT)


@pytest.mark.slow
def test_commands_that_run_together(small: Small, complete: Any) -> None:
    """The seeder goes on when it sees that `ingest.py` runs, too."""
    ingest = small.path / "ingest.py"
    with edited(ingest, f"open('ingesting', 'w').close()\n{ingest.read_text()}"):
        small.green(SEED="while not os.path.exists('ingesting'): time.sleep(0.01)")
        assert small.seedings() == 1
    (small.path / "ingesting").unlink()
    small.healed(complete, says=BUILT)


@pytest.mark.slow
def test_seeder_that_leaves_a_process(small: Small, complete: Any) -> None:
    """It holds the seeder's output and a connection, and wants to write later."""
    later = (
        "import subprocess, sys\n"
        "code = '''import os, time, psycopg\n"
        'with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:\n'
        '    connection.execute("SELECT 1")\n'
        "    time.sleep(600)'''\n"
        "subprocess.Popen([sys.executable, '-c', code], start_new_session={})\n"
        "time.sleep(0.5)\n"
    )
    passed(small.outcome(SEED=later.format(False)))
    assert not started_with(small.mark)
    small.edit_seeder()
    passed(small.outcome(SEED=later.format(True)))
    kill(started_with(small.mark))
    small.healed(complete)


@pytest.mark.slow
def test_sources_that_change_meanwhile(small: Small, complete: Any) -> None:
    run = small.begin(SEED="open('go', 'w').close()\nwhile os.path.exists('go'): time.sleep(0.01)")
    wait_until((small.path / "go").exists, "the seeder")
    small.edit_seeder()
    (small.path / "go").unlink()
    outcome = small.end(run)
    assert outcome.status == 1
    assert "app/seed_database.py changed while the golden database was built" in outcome.output
    small.healed(complete)


@pytest.mark.slow
def test_builder_that_is_suspended(small: Small, complete: Any) -> None:
    """By Ctrl-Z, for example. The other run says whom it waited for."""
    with patience(small, 2):
        first = small.begin(SEED="time.sleep(600)")
        small.wait_for(SEEDER, first)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            output = small.red()
        finally:
            os.kill(first.pid, signal.SIGCONT)
        small.end(first)
    assert re.search(
        r"Waited \d+ s for the golden database that process \d+ \(tests.harness", output
    )
    assert "stop it and run again" in output
    small.healed(complete)


# --- many at once -------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_workers_from_nothing(small: Small, complete: Any) -> None:
    many = small.path / "tests/test_many.py"
    many.write_text(
        "import pytest\n\n\n"
        "@pytest.mark.parametrize('number', range(40))\n"
        "async def test_many(number, db_session):\n    pass\n"
    )
    shutil.rmtree(small.home)
    outcome = small.outcome("-n", "8", str(many))
    many.unlink()
    assert outcome.counts == {"passed": 40}
    assert len(set(re.findall(r"\[(gw\d)\] golden", outcome.output))) == 8
    assert small.seedings() == 1
    small.healed(complete)


@pytest.mark.thorough
def test_runs_at_once(small: Small, complete: Any) -> None:
    shutil.rmtree(small.home)
    runs = [small.begin() for _ in range(3)]
    stories = [passed(small.end(run)).golden()[1] for run in runs]
    assert small.seedings() == 1
    assert sorted(story.partition(" ")[0] for story in stories) == ["built", "reused", "reused"]
    small.healed(complete)


@pytest.mark.slow
def test_branches_at_once(small: Small, complete: Any) -> None:
    """Two checkouts of it, each with a seeder of its own, on one server."""
    other = changed(small, path=small.path.with_name("branch"))
    shutil.copytree(small.path, other.path)
    other.edit_seeder()
    with small.console() as console:
        home = console.look().home
        url = f"postgresql+asyncpg://postgres@/postgres?host={home / 'socket'}"
        runs = [(branch, branch.begin(TEST_DATABASE_URL=url)) for branch in (small, other)]
        names = {passed(branch.end(run)).golden()[0] for branch, run in runs}
        look = console.look()
    assert small.seedings() == other.seedings() == 1
    assert len(names) == 2
    assert [look.held[name] for name in names] == [complete, complete]
    shutil.rmtree(other.path)
    remove_clusters(other.path)
    small.healed(complete)


# --- a full disk --------------------------------------------------------------------------------

FULL = re.compile("No space left on device|Check free disk space")


@contextmanager
def disk(small: Small, megabytes: int) -> Iterator[tuple[Small, Path]]:
    """The service, where its server has a disk of so many megabytes; and that disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = small.path.with_name("disk")
    folder.mkdir(exist_ok=True)
    home = small.home.relative_to("/dev/shm")
    size = f"size={megabytes}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=False).returncode:
        pytest.skip("may not mount a small disk here")
    script = f'mount --bind "{folder}" /dev/shm && exec "$@"'
    try:
        (folder / home).mkdir(parents=True, mode=0o700)  # so small a disk would not be chosen
        wrapped = changed(small, prefix=("unshare", "--mount", "sh", "-c", script, "sh"))
        wrapped.green()
        assert (folder / home / "data").exists()
        yield wrapped, folder
        assert not started_with(small.mark)
    finally:
        kill(started_with(small.mark))
        subprocess.run(["umount", "--lazy", folder], check=True)


def used(folder: Path) -> float:
    room = os.statvfs(folder)
    return (room.f_blocks - room.f_bfree) * room.f_frsize / 1e6


def fill(folder: Path, leave: float) -> Path:
    """Fill a disk but for so many megabytes."""
    room = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(int(room.f_bavail * room.f_frsize - leave * 1e6)))
    return ballast


@pytest.mark.slow
def test_disk_full_while_seeding(small: Small, complete: Any) -> None:
    with disk(small, 160) as (service, folder):
        before = used(folder)
        service.edit_seeder()
        hoard = (
            "import psycopg\n"
            "url = os.environ['DATABASE_URL'].replace('+asyncpg', '')\n"
            "with psycopg.connect(url) as connection:\n"
            "    connection.execute('CREATE TABLE hoard AS '\n"
            "        'SELECT repeat(md5(i::text), 30) FROM generate_series(1, 1000000) i')"
        )
        output = service.red(SEED=hoard)
        assert FULL.search(output)
        assert used(folder) < before + 20
        service.healed(complete)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "leave",
    first(1, [1, 60, 20, 5, 0.1]),
)
def test_disk_full(leave: float, small: Small, complete: Any) -> None:
    with disk(small, 160) as (service, folder):
        service.edit_seeder()
        ballast = fill(folder, leave)
        before = used(folder)
        outcome = service.outcome()
        if outcome.status or leave <= 1:
            assert FULL.search(outcome.output)
            assert "INTERNALERROR" not in outcome.output
        assert used(folder) < before + 11, "no more than a golden database"
        ballast.unlink()
        service.healed(complete)


# Loaded by `-p`: the run dies when it is about to start its n-th process.
DIES = """\
import itertools, os, sys

number = itertools.count(1)


def die(event, arguments):
    if event == "subprocess.Popen" and next(number) == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), 9)


sys.addaudithook(die)
"""


@pytest.mark.slow
def test_killed_as_it_starts_a_process(small: Small, complete: Any) -> None:
    """Whichever it is: no seeder is left that nobody waits for."""
    plugin = small.path / "dies.py"
    plugin.write_text(DIES)
    died = 0
    while True:
        small.edit_seeder()
        run = small.begin("-p", "dies", DIE_AT=str(died + 1), SEED="time.sleep(3)")
        if run.wait(60) != -signal.SIGKILL:
            break
        died += 1
        time.sleep(0.5)  # what ends the others has had its turn
        left = [line for line in started_with(small.mark).values() if "postgres" not in line]
        small.end(run)
        assert not left, f"when the run was about to start process {died}"
    passed(small.end(run))
    plugin.unlink()
    assert died >= 3, "what seeds, what ingests, and what ends them"
    small.healed(complete)


def test_role_that_an_earlier_build_has_made(small: Small) -> None:
    """It belongs to the server, which outlives the database."""
    url = "os.environ['DATABASE_URL'].replace('+asyncpg', '')"
    create = f"import psycopg; psycopg.connect({url}).execute('CREATE ROLE reader')"
    small.edit_seeder()
    with small.console() as console:
        console.sql("CREATE ROLE reader")
        said = small.red(SEED=create)
        console.sql("DROP ROLE reader")
    assert "an earlier build has made it. Make it only where it is not there." in said
