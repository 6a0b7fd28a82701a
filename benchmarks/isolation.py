"""What a test costs in a rendered service, and by the usual patterns: make bench

Each contender's test does the same on the same embedded Postgres: insert a row, commit, count the
rows. The figure is what one more test costs, (T(N) - T(1)) / (N - 1), where T is the time of a
whole pytest process: start-up cancels out. In each round all contenders take their turn, so that
a machine that is busy for a while is busy for all of them. Quote the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.published import CHART, DOCUMENT, Table, chart, written
from tests.support.command import run
from tests.support.embedded import remove_clusters, servers
from tests.support.environment import hermetic_environment
from tests.support.project import Project, render
from tests.support.template import clone_working_tree

HERE = Path(__file__).parent

OURS = {
    "unit": "touches nothing",
    "session": "db_session",
    "request": "async_client: a request",
    "own_database": "own_database",
    "own_connection": "db_engine",
}
USUAL = {
    "savepoint": "pattern: savepoints on a pooled engine",
    "engine": "pattern: an engine for each test",
    "clone": "pattern: a clone for each test",
}
BASE = "session"
TITLE = f"What one more test costs, with {OURS[BASE]} as 1"

Costs = dict[str, list[float]]

PATTERNS_INI = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = session
asyncio_default_test_loop_scope = session
"""


@dataclass(frozen=True)
class Contender:
    """A test that a pytest process runs as often as it is told."""

    name: str
    label: str
    command: Sequence[str | Path]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def seconds(self, tests: int, *options: str) -> float:
        """The time of a process that runs so many tests, which must all pass."""
        begun = time.perf_counter()
        done = subprocess.run(
            [*self.command, *options],
            cwd=self.cwd,
            env={**os.environ, **self.env, "BENCH_TESTS": str(tests)},
            capture_output=True,
            text=True,
            check=False,
        )
        took = time.perf_counter() - begun
        if done.returncode or f"{tests} passed" not in done.stdout:
            raise SystemExit(f"{self.label}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        return took

    def intervals(self, tests: int) -> list[float]:
        """From the begin of each test to that of the next one, in seconds, as tests note them."""
        with tempfile.NamedTemporaryFile() as times:
            replace(self, env={**self.env, "BENCH_TIMES": times.name}).seconds(tests)
            begun = json.loads(Path(times.name).read_text())
        return [after - before for before, after in itertools.pairwise(begun)]

    def milliseconds(self, tests: int, *options: str) -> float:
        """What one more test costs."""
        one, many = self.seconds(1, *options), self.seconds(tests, *options)
        return (many - one) / (tests - 1) * 1000


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tests", type=int, default=200, help="tests of a run (200)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each takes (5)")
    parser.add_argument("--long", type=int, default=5000, help="tests of a long run (5000)")
    parser.add_argument(
        "--publish", action="store_true", help="write the chart and the tables that docs/ shows"
    )
    options = parser.parse_args(words)
    if options.tests < 2 or options.rounds < 1 or options.long < 1000:
        parser.error("a cost needs at least two tests and one round, and a long run 1000 tests")
    return options


def main() -> None:
    """Print tables: of a test, of two workers, of a long run, of a start, of large tables."""
    options = parsed(sys.argv[1:])
    tables: list[Table] = []
    with service() as project:
        ours = [contender(project, name, label) for name, label in OURS.items()]
        with servers(project) as running:  # kept running for all of them
            usual = [pattern(project, name, running.urls["DATABASE_URL"]) for name in USUAL]
            costs = per_test(ours + usual, options.tests, options.rounds)
            ((server,),) = running.sql("SELECT split_part(version(), ' ', 2)")
            tables += [shown(table_of(costs, options.tests))]
            tables += [shown(two_workers(ours, 2 * options.tests, options.rounds))]
        tables += [shown(long_run(project, options.long, options.rounds))]
        tables += [shown(start(project, ours, options.rounds))]
        tables += [shown(sizes(project, options.rounds))]
        with redirect_stdout(sys.stderr):
            python = project.run(project.python, "--version").output.strip()
    made = f"Made by make bench: {python}, PostgreSQL {server}, {options.rounds} rounds"
    print(made)
    if options.publish:
        if min(statistics.median(each) for each in costs.values()) <= 0:
            raise SystemExit(
                "A test can't cost less than nothing: more tests, or a quieter machine."
            )
        DOCUMENT.write_text(written(DOCUMENT.read_text(), tables, made))
        bars = [(label, ratio, label in OURS.values()) for label, ratio in ratios(costs).items()]
        CHART.write_text(chart(TITLE, bars, made))


@contextmanager
def service() -> Iterator[Project]:
    """A service with the default answers and an environment of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        say("rendering a service and installing what it needs")
        with (folder / "log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            for variable, value in hermetic_environment(folder / "home").items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value
            clone_working_tree(folder / "template")
            render(folder / "template", folder / "service", {})
            run(os.environ["UV"], "sync", "--quiet", cwd=folder / "service", timeout=600)
        try:
            yield Project.read(folder / "service", folder / "service/.venv/bin/python")
        finally:
            remove_clusters(folder)


def say(line: str) -> None:
    """Show progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def shown(table: Table) -> Table:
    """The table, once it is printed."""
    print(f"\n{table.text()}", flush=True)
    return table


def pytest_of(project: Project, *arguments: str) -> list[str | Path]:
    """A command that runs pytest quietly, without plugins that not all contenders would load."""
    without = ("randomly", "cacheprovider", "langsmith_plugin", "valkey")
    options = ["-q", *(word for plugin in without for word in ("-p", f"no:{plugin}"))]
    return [project.python, "-m", "pytest", *options, *arguments]


def contender(project: Project, name: str, label: str) -> Contender:
    """A test in the service, by its harness."""
    shutil.copy(HERE / "service_tests.py", project.path / "tests" / "test_bench.py")
    command = pytest_of(project, "--no-cov", "tests/test_bench.py", "-k", f"test_{name}")
    return Contender(name, label, command, project.path)


def pattern(project: Project, name: str, url: str) -> Contender:
    """The same test without the harness, in a folder beside the service."""
    folder = project.path.with_name("patterns")
    folder.mkdir(exist_ok=True)
    shutil.copy(HERE / "usual_patterns.py", folder / "test_bench.py")
    (folder / "pytest.ini").write_text(PATTERNS_INI)
    env = {"BENCH_URL": url, "PYTHONPATH": str(project.path)}
    command = pytest_of(project, "test_bench.py", "-k", f"test_{name}")
    return Contender(name, USUAL[name], command, folder, env)


def per_test(contenders: Sequence[Contender], tests: int, rounds: int) -> Costs:
    """What one more test costs, in milliseconds: of each round, by the contender's label."""
    for each in contenders:
        each.seconds(1)  # byte code, the golden database
    costs: Costs = {each.label: [] for each in contenders}
    for number in range(rounds):
        say(f"what a test costs: round {number + 1} of {rounds}")
        for each in contenders:
            costs[each.label].append(each.milliseconds(tests))
    return costs


def ratios(costs: Costs) -> dict[str, float]:
    """The medians, with that of BASE as 1."""
    base = statistics.median(costs[OURS[BASE]])
    return {label: statistics.median(each) / base for label, each in costs.items()}


def table_of(costs: Costs, tests: int) -> Table:
    """What one more test costs."""
    rows = [
        [label, f"{statistics.median(each):.2f} ms", spread(each), f"{ratio:.2f}"]
        for (label, each), ratio in zip(costs.items(), ratios(costs).values(), strict=True)
    ]
    return Table(f"One more test, of {tests}", ["", "median", "from, to", "ratio"], rows)


def spread(costs: Sequence[float]) -> str:
    """The least and the most."""
    return f"{min(costs):.2f}, {max(costs):.2f}"


def two_workers(contenders: Sequence[Contender], tests: int, rounds: int) -> Table:
    """How much faster the same tests are with `-n 2`."""
    rows = []
    for each in contenders:
        if each.name == "unit":
            continue
        say(f"with two workers: {each.label}")
        pairs = [
            (each.milliseconds(tests), each.milliseconds(tests, "-n", "2")) for _ in range(rounds)
        ]
        one, two = (statistics.median(costs) for costs in zip(*pairs, strict=True))
        ratio = statistics.median(one / two for one, two in pairs)
        rows.append([each.label, f"{one:.2f} ms", f"{two:.2f} ms", f"{ratio:.2f}"])
    heads = ["", "one worker", "two workers", "times as fast"]
    return Table(f"One more test, of {tests}, with one worker and with two", heads, rows)


def start(project: Project, ours: Sequence[Contender], rounds: int) -> Table:
    """What a run costs beyond that of pytest itself: the process that runs one test."""
    bare_folder = project.path.with_name("bare")
    bare_folder.mkdir()
    (bare_folder / "test_bench.py").write_text("async def test_unit():\n    assert True\n")
    (bare_folder / "test_import.py").write_text(
        "async def test_unit():\n    import app.models, app.database, asyncpg\n"
    )
    (bare_folder / "pytest.ini").write_text(PATTERNS_INI)
    bare, importing = (
        Contender(
            name,
            name,
            pytest_of(project, f"test_{name}.py"),
            bare_folder,
            {"PYTHONPATH": str(project.path)},
        )
        for name in ("bench", "import")
    )
    unit, session = (next(o for o in ours if o.name == name) for name in ("unit", "session"))

    def cold() -> float:
        with redirect_stdout(sys.stderr):
            project.tool("tests.harness", "clean")
        return session.seconds(1)

    runs: dict[str, Callable[[], float]] = {
        "pytest alone": lambda: bare.seconds(1),
        "pytest alone, importing the models": lambda: importing.seconds(1),
        "a unit test": lambda: unit.seconds(1),
        "a test with db_session, no server yet": cold,
        "a test with db_session, server kept from before": lambda: session.seconds(1),
    }
    times: dict[str, list[float]] = {label: [] for label in runs}
    for number in range(rounds):
        say(f"what a start costs: round {number + 1} of {rounds}")
        for label, once in runs.items():
            times[label].append(once())
    base = statistics.median(times["pytest alone"])
    rows = [
        [
            label,
            f"{statistics.median(each):.2f} s",
            spread(each),
            f"{statistics.median(each) - base:+.2f} s",
        ]
        for label, each in times.items()
    ]
    return Table("A whole run of one test", ["", "median", "from, to", "beyond pytest"], rows)


def long_run(project: Project, tests: int, rounds: int) -> Table:
    """Whether tests become slower: the last of many beside the first.

    Of each, those that nothing else on the machine delayed: the quickest tenth.
    """
    test = contender(project, "long_run", "a long run")
    found = []
    for number in range(rounds):
        say(f"{tests} tests: round {number + 1} of {rounds}")
        took = test.intervals(tests)
        first, last = (statistics.quantiles(some, n=10)[0] for some in (took[50:550], took[-500:]))
        found.append(last / first)
    rows = [["the last 500, beside the 500 after the 50th", f"{statistics.median(found):.2f}"]]
    return Table(f"Whether tests become slower, of {tests}", ["", "ratio"], rows)


# At the end of the seeder. Rows of some 100 bytes.
TABLES = """
if __name__ == "__main__":
    import os

    import psycopg

    with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:
        for name, rows in {sizes}.items():
            connection.execute(
                f"CREATE TABLE {{name}} AS SELECT id, repeat('x', 60) AS text "
                f"FROM generate_series(1, {{rows}}) id"
            )
            connection.execute(f"ALTER TABLE {{name}} ADD PRIMARY KEY (id)")
"""

ROWS = {"rows_10": 10, "rows_1000": 1000, "rows_100000": 100_000, "rows_1000000": 1_000_000}
DOES = {"reads": "reads a row", "adds": "adds a row", "changes": "changes a row"}


def sizes(project: Project, rounds: int) -> Table:
    """What putting back costs, by the size of a table and by the number of tables."""
    shutil.copy(HERE / "size_tests.py", project.path / "tests" / "test_sizes.py")
    seeder = project.package / "seed_database.py"
    without = seeder.read_text()
    rows = []
    for count, tables in ((1, ROWS), (20, {"rows_10": 10}), (500, {"rows_10": 10})):
        others = {f"other_{number}": 10 for number in range(count - 1)}
        seeder.write_text(without + TABLES.format(sizes=tables | others))
        for table, size in tables.items():
            what = f"{size:,} rows" + (f", of {count} tables" if count > 1 else "")
            say(f"putting back: {what}")
            figures = []
            for does in DOES:
                env = {"BENCH_TABLE": table}
                only = pytest_of(project, "--no-cov", f"tests/test_sizes.py::test_{does}")
                test = Contender(does, what, only, project.path, env)
                costs = [second for _ in range(rounds) for second in test.intervals(60)[10:]]
                figures.append(f"{statistics.median(costs) * 1000:.2f} ms")
            rows.append([what, *figures])
    seeder.write_text(without)
    title = "One more test that does something to one table, with db_session"
    return Table(title, ["its table has", *DOES.values()], rows)


if __name__ == "__main__":
    main()
