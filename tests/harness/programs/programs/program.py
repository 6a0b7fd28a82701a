"""Random programs, and their text: what is run is what is printed."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from . import prelude
from .statements import DEFINITIONS, ERRORS, READS, ROWS, SEQUENCES, SESSION, STEADY, WORDS

_RETURNS = re.compile("SELECT|SHOW|FETCH|EXECUTE|.* RETURNING ", re.DOTALL)
_SESSION = "AsyncSessionLocal()"
_VARIED = "AsyncSessionLocal(bind=engine.execution_options({}))"
_DRIVER_OF_SESSION = "(await (await {v}.connection()).get_raw_connection()).driver_connection"
_DRIVER_OF_CONNECTION = "(await {v}.get_raw_connection()).driver_connection"


@dataclass(frozen=True)
class Way:
    """A way to work with the database, in Python; `{v}` is the name of the session."""

    name: str
    family: str
    """Whose methods the session has: sqlalchemy, asyncpg, psycopg or psycopg async."""
    open: str
    driver: str = "{v}"
    """asyncpg's connection, where there is one."""
    opened: str = "{v}"
    """What is to be closed."""
    ends: bool = True
    """Whether a transaction begins by itself, and ends by methods."""

    @property
    def wait(self) -> str:
        return "" if self.family == "psycopg" else "await "

    def run(self, v: str, sql: str) -> str:
        """An expression that runs a statement."""
        literal = f"{'f' if '{NAME}' in sql else ''}{sql!r}"
        if self.family == "sqlalchemy":
            return f"await {v}.execute(text({literal}))"
        method = "fetch" if self.family == "asyncpg" and _RETURNS.match(sql) else "execute"
        return f"{self.wait}{v}.{method}({literal})"

    def end(self, v: str, how: str) -> str:
        return f"{self.wait}{v}.{how}()" if self.ends else self.run(v, how.upper())

    def block(self, v: str) -> str:
        """What rolls back to a savepoint when an error leaves it."""
        if self.family == "sqlalchemy":
            return f"async with {v}.begin_nested():"
        return f"{'async ' if self.wait else ''}with {v}.transaction():"

    def pid(self, v: str) -> str:
        if "psycopg" in self.family:
            return f"{v}.info.backend_pid"
        driver = self.driver.format(v=v)
        return f"0 if {driver}.is_closed() else {driver}.get_server_pid()"


_OWN_ENGINE = "{v} = await create_async_engine(URL, poolclass=NullPool).connect()"
_POOL = "kept.append(create_async_engine(URL))\n{v} = await kept[-1].connect()"
_DRIVER = f"s_{{v}} = {_SESSION}\n{{v}} = {_DRIVER_OF_SESSION.format(v='s_{v}')}"

WAYS = [
    Way("service", "sqlalchemy", f"{{v}} = {_SESSION}", _DRIVER_OF_SESSION),
    Way("asyncpg", "asyncpg", "{v} = await asyncpg.connect(DSN)", ends=False),
    Way("psycopg", "psycopg", "{v} = psycopg.connect(DSN)"),
    Way("engine", "sqlalchemy", _OWN_ENGINE, _DRIVER_OF_CONNECTION),
    Way("driver of a session", "asyncpg", _DRIVER, opened="s_{v}", ends=False),
    Way("pool", "sqlalchemy", _POOL, _DRIVER_OF_CONNECTION),
    *(
        Way(name, "sqlalchemy", f"{{v}} = {_VARIED.format(name)}", _DRIVER_OF_SESSION)
        for name in (
            'isolation_level="AUTOCOMMIT"',
            'isolation_level="REPEATABLE READ"',
            'isolation_level="SERIALIZABLE"',
            "postgresql_readonly=True",
        )
    ),
    Way("psycopg autocommit", "psycopg", "{v} = psycopg.connect(DSN, autocommit=True)", ends=False),
    Way("psycopg async", "psycopg async", "{v} = await psycopg.AsyncConnection.connect(DSN)"),
]
SERVICE, ASYNCPG, PSYCOPG = WAYS[:3]
AUTOCOMMIT = next(way for way in WAYS if way.name == "psycopg autocommit")


Chosen = tuple[str, str, str]
"""A statement, its kind, and the template that it was made of."""


@dataclass(frozen=True)
class Step:
    """A part of a program: Python, with the name of its session already in it.

    Attributes:
        kind: what it does, to count what was done.
        code: of one or more lines.
        session: the number of the session that it uses.
        statements: those in the code.
        settles: whether what it ends may need a moment to go.
        closes: whether the session is closed by it.
        leaves: whether a session, or a transaction, may be left by it.
    """

    kind: str
    code: str
    session: int | None = None
    statements: tuple[Chosen, ...] = ()
    settles: bool = False
    closes: bool = False
    leaves: bool = False


@dataclass(frozen=True)
class Program:
    """What one test does."""

    ways: tuple[Way, ...]
    steps: tuple[Step, ...]
    left: tuple[bool, ...]
    """Which sessions nobody closes, if they are open at the end."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For Hypothesis: it is printed otherwise."""
        printer.text("the one above")

    def numbered(self) -> dict[int, Step]:
        """The steps by the numbers in the text."""
        return dict(enumerate([*self.steps, *self._last_steps()], 1))

    @property
    def leaves(self) -> bool:
        """Whether a session, or a transaction, may be left when it is done."""
        return any(part.leaves for part in self.numbered().values())

    def _last_steps(self) -> list[Step]:
        open_ = set[int]()
        for step in self.steps:
            if step.session is not None:
                (open_.discard if step.closes else open_.add)(step.session)
        return [leave(n, self.ways[n]) if self.left[n] else close(n, self.ways[n]) for n in sorted(open_)]

    def source(self, name: str = "test_program") -> str:
        """The text of a function."""
        lines, open_ = list[str](), set[int]()
        for number, step in self.numbered().items():
            session = step.session
            if session is not None and session not in open_:
                lines += self.ways[session].open.format(v=v(session)).splitlines()
                open_.add(session)
            if step.closes and session is not None:
                open_.remove(session)
            raw = session is not None and self.ways[session].family != "sqlalchemy"
            start = (
                f"async with step({number}{', ' + v(session) if raw else ''})"
                if step.settles
                else f"with step({number})"
            )
            lines += [f"{start}:", *indented(step.code)]
        return "\n".join([f"async def {name}():", *indented("\n".join(lines))]) + "\n"

    def printed(self) -> str:
        """A whole file of tests."""
        return f"{inspect.getsource(prelude)}\n\n{self.source()}"


def v(session: int) -> str:
    return "abc"[session]


def indented(code: str) -> list[str]:
    return textwrap.indent(code, "    ").splitlines()


def close(session: int, way: Way) -> Step:
    code = f"{way.wait}{way.opened.format(v=v(session))}.close()"
    return Step("close", code, session, settles=True, closes=True)


def leave(session: int, way: Way) -> Step:
    return Step("leave", f"kept.append({way.opened.format(v=v(session))})", session, leaves=True)


# --- what is drawn ------------------------------------------------------------------------------

_WEIGHTS = [(ROWS, 8), (READS, 3), (SEQUENCES, 2), (SESSION, 5), (DEFINITIONS, 3), (ERRORS, 1)]
_MENU = [
    [(kind, template) for kind, templates in group.items() for template in templates]
    for group, weight in _WEIGHTS
    for _ in range(weight)
]


@st.composite
def statements(draw: st.DrawFn) -> Chosen:
    """A statement of any kind."""
    kind, template = draw(st.sampled_from(draw(st.sampled_from(_MENU))))
    words = dict.fromkeys(re.findall(r"{(\w+)}", template))
    filled = template.format(**{word: draw(st.sampled_from(WORDS[word])) for word in words})
    return filled, kind, template


def some(draw: st.DrawFn, least: int, most: int) -> tuple[Chosen, ...]:
    return tuple(draw(st.lists(statements(), min_size=least, max_size=most)))


def sql(draw: st.DrawFn, session: int, way: Way) -> Step:
    """One statement."""
    chosen = draw(statements())
    return Step("statement", f"see({way.run(v(session), chosen[0])})", session, (chosen,))


def end(draw: st.DrawFn, session: int, way: Way) -> Step:
    """The beginning or the end of a transaction."""
    name = v(session)
    hows = ["commit", "rollback"]
    if not way.ends:
        hows += ["begin", "begin isolation level repeatable read"]
    how = draw(st.sampled_from(hows))
    return Step(how, way.end(name, how), session)


def closed(draw: st.DrawFn, session: int, way: Way) -> Step:
    return close(session, way)


def nested(draw: st.DrawFn, session: int, way: Way) -> Step:
    """Statements, and perhaps another session, within a savepoint."""
    chosen, leaves = some(draw, 0, 3), False
    lines = [f"see({way.run(v(session), text)})" for text, *_ in chosen] or ["pass"]
    if draw(st.booleans()):
        within = unit(draw, session, way)
        chosen, leaves = (*chosen, *within.statements), within.leaves
        lines.append(within.code)
    undone = draw(st.booleans())
    if undone:
        lines.append("raise UndoError")
    code = "\n".join([way.block(v(session)), *indented("\n".join(lines))])
    kind = "savepoint rolled back" if undone else "savepoint"
    return Step(kind, code, session, chosen, settles=True, leaves=leaves)


def timed_out(draw: st.DrawFn, session: int, way: Way) -> Step:
    """A time-out of the server's, or of asyncio's in the middle of a statement."""
    name = v(session)
    if way.wait and draw(st.booleans()):
        sleep = way.run(name, "SELECT pg_sleep(9)").removeprefix("await ")
        code = f"see({way.run(name, 'SELECT 1')})\nawait asyncio.wait_for({sleep}, 0.01)"
        return Step("time-out of asyncio", code, session, settles=True)
    lines = [way.run(name, "SET LOCAL statement_timeout = 5"), way.run(name, "SELECT pg_sleep(9)")]
    code = "\n".join([way.block(name), *indented("\n".join(lines))])
    return Step("time-out of the server", code, session)


_UNITS = {
    "a session of the service": """\
async with AsyncSessionLocal() as s:
    {statements}
    await s.{end}()""",
    "a thread": """\
def work():
    with psycopg.connect(DSN) as s:
        {statements}
        s.{end}()
await asyncio.to_thread(work)""",
    "a loop": """\
async def work():
    async with AsyncSessionLocal() as s:
        {statements}
        await s.{end}()
await asyncio.to_thread(asyncio.run, work())""",
    "a process": """\
process(r\"\"\"
import psycopg
s = psycopg.connect(DSN)
{statements}
s.{end}()
s.close()
\"\"\")""",
    "a session that stays": """\
s = AsyncSessionLocal()
kept.append(s)
{statements}""",
    "a process that stays": """\
process(r\"\"\"
import psycopg
s = psycopg.connect(DSN)
{statements}
\"\"\", stay=True)""",
}
_UNITS_MENU = [*list(_UNITS)[:4] * 4, *list(_UNITS)[4:]]


def unit(draw: st.DrawFn, session: int, way: Way) -> Step:
    """A session that is opened, used and closed, or not closed, at one place."""
    where = draw(st.sampled_from(_UNITS_MENU))
    chosen = some(draw, 1, 2)
    how = draw(st.sampled_from(["commit", "rollback"]))
    way = SERVICE if "AsyncSessionLocal" in _UNITS[where] else PSYCOPG
    lines = [way.run("s", text) for text, *_ in chosen]
    if "process" not in where:
        lines = [f"see({line})" for line in lines]
    code = re.sub(
        "^( *){statements}$",
        lambda found: textwrap.indent("\n".join(lines), found[1]),
        _UNITS[where].replace("{end}", how),
        flags=re.MULTILINE,
    )
    return Step(where, code, None, chosen, settles=True, leaves="stays" in where)


_SLOW = {
    "AsyncSessionLocal.begin()": "await s.execute(text({!r}))",
    "create_async_engine(URL, poolclass=NullPool).begin()": "await s.execute(text({!r}))",
    "asyncpg.create_pool(DSN, min_size=1, max_size=1)": "await s.execute({!r})",
}


def cancelled(draw: st.DrawFn, session: int, way: Way) -> Step:
    """A session that a time-out or a cancellation ends, wherever it is."""
    begin = draw(st.sampled_from(list(_SLOW)))
    chosen = [*draw(st.lists(st.sampled_from(STEADY), max_size=2)), "SELECT pg_sleep(9)"]
    lines = ["async def slow():", f"    async with {begin} as s:"]
    lines += [f"        {_SLOW[begin].format(text)}" for text in chosen]
    if draw(st.booleans()):
        kind = "task cancelled"
        lines += [
            "task = asyncio.create_task(slow())",
            f"for _ in range({draw(st.integers(0, 60))}):",
            "    await asyncio.sleep(0)",
            "task.cancel()",
            "await asyncio.gather(task, return_exceptions=True)",
        ]
    else:
        kind = "task timed out"
        seconds = draw(st.sampled_from([0.01, 0.001, 0.0001]))
        lines.append(f"await asyncio.gather(asyncio.wait_for(slow(), {seconds}), return_exceptions=True)")
    return Step(kind, "\n".join(lines), settles=True)


def together(draw: st.DrawFn, session: int, way: Way) -> Step:
    """Sessions at the same time."""
    number = draw(st.integers(2, 7))
    code = f"""\
async def work(n):
    async with AsyncSessionLocal.begin() as s:
        await s.execute(text(f"INSERT INTO cache VALUES ({{n}} + 100, 'together')"))
        if n == 3:
            await s.execute(text("SELECT 1 / 0"))
see(await asyncio.gather(*map(work, range({number})), return_exceptions=True))"""
    return Step("together", code, settles=True)


_SORTED = "SELECT id FROM big ORDER BY id"
_MANY = {
    "COPY by the driver": {
        "sqlalchemy": 'see(await {driver}.copy_records_to_table("no_key", records=ROWS))',
        "asyncpg": 'see(await {v}.copy_records_to_table("no_key", records=ROWS))',
        "psycopg": 'with {v}.cursor().copy("COPY no_key FROM STDIN") as copy:\n    copy.write_row(ROWS[0])',
        "psycopg async": 'async with {v}.cursor().copy("COPY no_key FROM STDIN") as copy:\n    await copy.write_row(ROWS[0])',
    },
    "executemany": {
        "sqlalchemy": 'see(await {v}.execute(text("INSERT INTO no_key VALUES (:a, :b)"), [{{"a": a, "b": b}} for a, b in ROWS]))',
        "asyncpg": 'see(await {v}.executemany("INSERT INTO no_key VALUES ($1, $2)", ROWS))',
        "psycopg": '{v}.cursor().executemany("INSERT INTO no_key VALUES (%s, %s)", ROWS)',
        "psycopg async": 'await {v}.cursor().executemany("INSERT INTO no_key VALUES (%s, %s)", ROWS)',
    },
    "cursor that stays open": {
        "sqlalchemy": f'see(await (await {{v}}.stream(text("{_SORTED}"))).fetchmany(3))',
        "asyncpg": f'see(await (await {{v}}.cursor("{_SORTED}")).fetch(3))',
        "psycopg": f'kept.append({{v}}.cursor("streamed"))\nsee(kept[-1].execute("{_SORTED}").fetchmany(3))',
        "psycopg async": f'kept.append({{v}}.cursor("streamed"))\nsee(await (await kept[-1].execute("{_SORTED}")).fetchmany(3))',
    },
}


def many(draw: st.DrawFn, session: int, way: Way) -> Step:
    """Many rows at a time, in both directions."""
    how = draw(st.sampled_from(list(_MANY)))
    driver = way.driver.format(v=v(session))
    code = _MANY[how][way.family].format(v=v(session), driver=driver)
    return Step("many rows", code, session, (("", how, f"{how}, {way.family}"),))


_OF_ASYNCPG = {
    "codec": 'await {d}.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=lambda value: ["mine", value])',
    "codec of an enum": 'await {d}.set_type_codec("mood", encoder=str, decoder=str.upper)',
    "listener": 'await {d}.add_listener("orders", lambda *arguments: heard.append(arguments))',
    "log listener": "{d}.add_log_listener(lambda *arguments: heard.append(arguments))",
    "query logger": "{d}.add_query_logger(heard.append)",
    "statement of asyncpg": 'see(await (await {d}.prepare("SELECT * FROM child")).fetch())',
    "time-out of asyncpg": 'await {d}.fetch("SELECT pg_sleep(9)", timeout=0.01)',
    "reset of asyncpg": "await {d}.reset()",
    "connection thrown away": "{d}.terminate()",
    "transaction of asyncpg": "async with {d}.transaction():\n    await {d}.execute(\"INSERT INTO no_key VALUES (6, 'driver')\")",
}


def driven(draw: st.DrawFn, session: int, way: Way) -> Step:
    """What goes to asyncpg's own connection."""
    if "psycopg" in way.family:
        return sql(draw, session, way)
    kind = draw(st.sampled_from(list(_OF_ASYNCPG)))
    code = f"d = {way.driver.format(v=v(session))}\n{_OF_ASYNCPG[kind].format(d='d')}"
    return Step(kind, code, session, settles=True)


def killed(draw: st.DrawFn, session: int, way: Way) -> Step:
    """The end of a session, or of all, by an administrator."""
    start = "with psycopg.connect(DSN, autocommit=True) as admin:\n    admin.execute("
    if draw(st.booleans()):
        code = f"pid = {way.pid(v(session))}\n{start}'SELECT pg_terminate_backend(%s, 5000)', [pid])"
        return Step("killed", code, session, settles=True)
    others = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return Step("all killed", f"{start}{others!r})", settles=True)


def prepared(draw: st.DrawFn, session: int, way: Way) -> Step:
    """A transaction in two phases; the second does not always come."""
    name = v(session)
    how = draw(st.sampled_from(["COMMIT", "ROLLBACK", ""]))
    lines = [] if way.ends else [way.run(name, "BEGIN")]
    lines.append(way.run(name, "INSERT INTO no_key VALUES (5, 'prepared')"))
    lines.append(way.run(name, "PREPARE TRANSACTION '{NAME}'"))
    if how:
        lines.append(way.end(name, "rollback"))
        lines.append("with psycopg.connect(DSN, autocommit=True) as s:")
        lines.append("    " + PSYCOPG.run("s", how + " PREPARED '{NAME}'"))
    kind = f"prepared transaction, {how.lower() or 'left'}"
    return Step(kind, "\n".join(lines), session, leaves=True)


_STEPS = [
    *(*[sql] * 16, *[end] * 6, *[unit] * 3, *[nested] * 2, *[closed] * 2, *[cancelled] * 2, *[driven] * 2),
    *(many, together, timed_out, killed, prepared),
]
KINDS = {
    *("statement", "commit", "rollback", "begin", "begin isolation level repeatable read", "close"),
    *("leave", "savepoint", "savepoint rolled back", "together", "killed", "all killed"),
    *("time-out of asyncio", "time-out of the server", "task cancelled", "task timed out"),
    *(f"prepared transaction, {how}" for how in ("commit", "rollback", "left")),
    "many rows",
    *_UNITS,
    *_OF_ASYNCPG,
}
"""All that steps may be."""
STATEMENTS = {
    template
    for group in (ROWS, READS, SEQUENCES, SESSION, DEFINITIONS)
    for templates in group.values()
    for template in templates
} | {f"{how}, {family}" for how, families in _MANY.items() for family in families}
"""The templates of statements that succeed, if not always."""


def alone() -> Iterator[Chosen]:
    """Each statement that may succeed: with the first of its words, with each setting and each lock."""
    words = {word: words[0] for word, words in WORDS.items()}
    for group in (ROWS, READS, SEQUENCES, SESSION, DEFINITIONS):
        for kind, templates in group.items():
            for template in templates:
                word = next((word for word in ("setting", "lock") if f"{{{word}}}" in template), "id")
                choices = WORDS[word] if word != "id" else WORDS[word][:1]
                for choice in choices:
                    yield template.format(**{**words, word: choice}), kind, template


def single(way: Way, chosen: Chosen) -> Program:
    """A program of one statement, committed."""
    statement = Step("statement", f"see({way.run('a', chosen[0])})", 0, (chosen,))
    end = [Step("commit", way.end("a", "commit"), 0)] if way.ends else []
    return Program((way,), (statement, *end), (False,))


@st.composite
def steps(draw: st.DrawFn, ways: Sequence[Way]) -> Step:
    make = draw(st.sampled_from(_STEPS))
    session = draw(st.integers(0, len(ways) - 1))
    return make(draw, session, ways[session])


_WAYS = [*[SERVICE] * 6, *WAYS * 3]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A program of a few sessions and a few steps."""
    ways = draw(st.lists(st.sampled_from(_WAYS), min_size=1, max_size=3))
    # In a long one, something that is noticed may hide what is not.
    chosen = draw(st.lists(steps(ways), min_size=1, max_size=draw(st.sampled_from([3, 12]))))
    leaves = st.sampled_from([False] * 19 + [True])  # a harness waits for whoever may be leaving
    left = draw(st.lists(leaves, min_size=len(ways), max_size=len(ways)))
    return Program(tuple(ways), tuple(chosen), tuple(left))
