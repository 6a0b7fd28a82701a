"""What a run of a rendered service's tests leaves on the machine: nothing that runs, no litter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import embedded
from tests.support.machine import MARK, lying_in, new_mark, started_with
from tests.support.project import Project
from tests.variants import DEFAULTS, LLM, ONE_FILE

CONCERNS = ["*/harness/servers/valkey.py", "*/harness/servers/postgres.py", "*/harness/files.py"]

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")

# Tests of the assistant, and of Redis.
SERVERS = ["tests/workflow", "tests/integration/test_rate_limit.py"]

# Loaded by `-p` into the rendered service's pytest: whoever starts a process fails, and whoever
# connects to anything but a socket of the test's own, or where nobody listens.
ALARM = """\
import sys

FORBIDDEN = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec")
NOBODY = ("127.0.0.1", 1)
bound = []


def alarm(event, arguments):
    if event == "socket.bind":
        bound.append(arguments[0])
    elif event == "socket.connect":
        own = [socket.getsockname() for socket in bound if socket.fileno() != -1]
        if arguments[1] not in [*own, NOBODY]:
            raise AssertionError(f"{event}{arguments} during a run of unit tests")
    elif event in FORBIDDEN:
        raise AssertionError(f"{event}{arguments} during a run of unit tests")


sys.addaudithook(alarm)
"""


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str | None]:
    """An environment whose temporary, cache and home folders are empty and this test's own."""
    names = {"TMPDIR": "tmp", "HOME": "home", "XDG_CACHE_HOME": "cache", "XDG_RUNTIME_DIR": "run"}
    for name in names.values():
        (tmp_path / name).mkdir()
    return {variable: str(tmp_path / name) for variable, name in names.items()}


@pytest.mark.thorough
def test_nothing_runs_or_lies_about_afterwards(
    project: Project, folders: dict[str, str | None]
) -> None:
    """One file alone, then what needs each server by two workers, from what the first run kept."""
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Scaffold")
    files, passed = ONE_FILE
    for options, story, counts in (
        (files, "built", {"passed": passed}),
        (["-n", "2", *SERVERS], "reused", {"passed": 37, "skipped": LLM}),
    ):
        mark = new_mark()
        run = project.pytest("--no-cov", *options, env={**folders, MARK: mark}, **counts)
        assert run.golden()[1].startswith(story)
        assert not started_with(mark)
        left = lying_in(*(Path(folder) for folder in folders.values() if folder))
        # pytest keeps a folder for the temporary files of its workers.
        assert not [path for path in left if "/pytest-of-" not in path]
        assert not project.run("git", "status", "--porcelain").output
        assert all(name.startswith("app_g_") for name in embedded.databases(project))


def test_failed_test_leaves_its_database_and_says_where(lean: Project) -> None:
    (lean.path / "tests" / "test_fails.py").write_text(
        "import pytest\n"
        "from sqlalchemy import text\n\n\n"
        "@pytest.mark.own_database\n"
        "async def test_fails(db_session):\n"
        '    await db_session.execute(text("CREATE TABLE evidence (id int)"))\n'
        "    await db_session.commit()\n"
        "    assert False\n"
    )
    outcome = lean.pytest("--no-cov", "tests/test_fails.py", status=1, failed=1)
    (kept,) = (name for name in embedded.databases(lean) if name.startswith("app_k_"))
    assert f"python -m tests.harness psql {kept}" in outcome.output
    assert embedded.execute(lean, (kept, "SELECT count(*) FROM evidence")) == [[0]]


def test_unit_tests_start_nothing_and_connect_to_nothing(
    project: Project, folders: dict[str, str | None], tmp_path: Path
) -> None:
    (tmp_path / "alarm.py").write_text(ALARM)
    env = {**folders, "PYTHONPATH": str(tmp_path)}
    options = ("--no-cov", "-p", "alarm")
    run = project.pytest(*options, "-m", "unit", env=env, passed=DEFAULTS.unit)
    assert "golden: " not in run.output
    left = lying_in(*(Path(folder) for folder in folders.values() if folder))
    assert not [path for path in left if "/pytest-of-" not in path]  # pytest's own
    files, _ = ONE_FILE
    red = project.tool("pytest", *options, *files, env=env, status=None)
    assert "during a run of unit tests" in red.output, "the alarm itself works"
