"""The recordings that README shows, made of what really runs: make recordings

What differs from machine to machine and from run to run is made the same, so that a recording
changes when what it shows does. Only durations stay as they were.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.support.command import run
from tests.support.embedded import remove_clusters
from tests.support.environment import hermetic_environment
from tests.support.picture import CODE, COLUMNS, terminal
from tests.support.template import ROOT, clone_working_tree

IMAGES = ROOT / "docs" / "images"
SERVICE, FAILURE = IMAGES / "service.svg", IMAGES / "failed-test.svg"
TITLES = {
    SERVICE: "make service: a service is rendered, and its tests pass",
    FAILURE: "What is said of a test that fails, and a look into its database",
}

Environment = Mapping[str, str | None]
Parts = Sequence[tuple[str, str]]

# In the order of their files, so that the tests that are shown come in the same order each time.
LOOKS = {"COLUMNS": str(COLUMNS), "NO_COLOR": None}
ORDERED = "--color=yes -p no:randomly -p no:cacheprovider"

SERVICE_COMMAND = "make service DEST=../my-service"
SHOWN_TESTS = [
    "tests/integration/test_customers.py::test_of_six_requests_at_once_one_creates",
    "tests/workflow/test_full_workflow.py::test_pause_inspect_resume_in_another_process",
    "tests/workflow/test_full_workflow.py::test_a_killed_process_is_made_good",
]
# What is shown of it, from the line that begins so to the one that begins so.
SERVICE_PARTS = [
    ("1/2 ", "2/2 "),
    ("building the golden database", "after a test"),
    *[(re.escape(test), re.escape(test)) for test in SHOWN_TESTS],
    ("databases: ", "databases: "),
    (r"=+ \d+ passed", r"=+ \d+ passed"),
    (r"\.\./my-service: rendered and tested", "  make run"),
]

FAILURE_COMMAND = "make test ARGS=tests/test_example.py"
QUESTION = "SELECT full_name, email FROM customers WHERE id > 5"
QUESTION_COMMAND = f'uv run python -m tests.harness psql -- -c "{QUESTION}"'
EXAMPLE = """\
from tests.factories import create_customer


async def test_address_is_free_again(async_client, auth_headers, db_session):
    ada = await create_customer(db_session, email="ada@example.org")
    ada.email = "lovelace@example.org"

    byron = {"full_name": "Ada Byron", "email": "ada@example.org"}
    response = await async_client.post("/api/v1/customers", json=byron, headers=auth_headers)

    assert response.status_code == 201
"""
FAILURE_PARTS = [
    ("=+ FAILURES", "_+ test_"),
    (" +async def test_", "tests/test_example.py:"),
    ("-+ Postgres log call", "databases: "),
    ("=+ short test summary", r"=+ \d+ failed"),
]

# What is never the same, and what is shown in its place.
STEADY = {
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC \[\d+\] \S+ app_w_\S+": "…",
    r"\bapp_([wk])_[0-9a-f]{8}_main(_\d+)?\b": r"app_\1_7d1c02a9_main\2",
    r"\bapp_g_[0-9a-f]{16}\b": "app_g_5b0f2c8d91e3a467",
}


def record_service(clone: Path, environment: Environment, options: str = "") -> str:
    """Run `make service` in a clone of the template. Its parts, with a terminal's codes.

    `options` are pytest's, in the service.
    """
    env = {**LOOKS, "PYTEST_ADDOPTS": f"{ORDERED} {options}", **environment}
    done = run(*shlex.split(SERVICE_COMMAND), cwd=clone, env=env, timeout=900)
    return "\n".join([prompt(SERVICE_COMMAND), *excerpt(done.output, SERVICE_PARTS)])


def record_failure(service: Path, environment: Environment) -> str:
    """Run a test that fails in a service, and look into its database, in the same way."""
    (service / "tests" / "test_example.py").write_text(EXAMPLE)
    env = {**LOOKS, "PYTEST_ADDOPTS": ORDERED, **environment}
    failed = run(*shlex.split(FAILURE_COMMAND), cwd=service, env=env, status=2)
    found = run(*shlex.split(QUESTION_COMMAND), cwd=service, env=env)
    rows = excerpt(found.output, [(r" +full_name +\|", r"\(1 row\)")])
    lines = [prompt(FAILURE_COMMAND), *excerpt(failed.output, FAILURE_PARTS)]
    return "\n".join([*lines, "", prompt(QUESTION_COMMAND), *rows])


def prompt(command: str) -> str:
    """A command as one types it."""
    return f"\x1b[90m$\x1b[0m \x1b[1m{command}\x1b[0m"


def excerpt(output: str, parts: Parts) -> list[str]:
    """Parts of an output, each from one line to another, and "⋮" between two.

    Raises:
        AssertionError: there is no such line after the part before.
    """
    for pattern, instead in STEADY.items():
        output = re.sub(pattern, instead, output)
    lines = output.splitlines()
    plain = [CODE.sub("", line) for line in lines]
    found: list[str] = []
    end = -1
    for first, last in parts:
        begin = next((n for n in range(end + 1, len(lines)) if re.match(first, plain[n])), None)
        assert begin is not None, f"nothing begins with {first}"
        if begin > end + 1:
            found.append("\x1b[90m⋮\x1b[0m")
        end = next((n for n in range(begin, len(lines)) if re.match(last, plain[n])), -1)
        assert end >= 0, f"nothing begins with {last}"
        found += lines[begin : end + 1]
    return found


def main() -> None:
    """Write the recordings anew."""
    with tempfile.TemporaryDirectory(prefix="recordings-") as name:
        folder = Path(name)
        environment = hermetic_environment(folder / "home")
        os.environ.update({k: v for k, v in environment.items() if v is not None})
        for variable in {k for k, v in environment.items() if v is None} & os.environ.keys():
            del os.environ[variable]
        print("rendering a service, and running its tests", file=sys.stderr)
        with (folder / "log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            clone_working_tree(folder / "copier-async-service")
            texts = {SERVICE: record_service(folder / "copier-async-service", {})}
            texts[FAILURE] = record_failure(folder / "my-service", {})
        remove_clusters(folder)
        for path, text in texts.items():
            path.write_text(terminal(TITLES[path], text))
            print(path.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
