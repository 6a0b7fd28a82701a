"""What the harness says of arguments that it can't use: which, and in one sentence."""

from __future__ import annotations

import pytest

from tests.support.small import Small

CONCERNS = ["*/harness/environment.py", "*/harness/recipe.py"]

WALK = """
from tests.harness import Recipe, module, together
from tests.harness.environment import Parts, prepare
from tests.harness.errors import HarnessError

for call in {calls}:
    try:
        eval(call)
        print(call, "-> taken")
    except HarnessError as error:
        print(error)
"""

# Each, and what is said of it.
PREPARE = {
    "prepare(FOO=3)": "prepare(FOO=…): the value of a variable is a text, not <class 'int'>.",
    "prepare(database_url='')": "prepare() was told of '', which is no name of a variable.",
    "prepare(database_url=['A'])": "prepare() was told of ['A'], which is no name of a variable.",
    "prepare(database_url={'A': 3})": "prepare() was told of URLs that begin with 3.",
    "prepare(redis_url='A=B')": "prepare() was told of 'A=B', which is no name of a variable.",
    "prepare(settings=3)": "prepare(settings=3): it takes the name of a module.",
    "prepare(settings='')": "prepare(settings=''): it takes the name of a module.",
    "prepare(settings='app.a.b')": "prepare(settings='app.a.b'): there is no such module",
    "prepare(settings='app.config.b')": "prepare(settings='app.config.b'): there is no such module",
    "prepare(settings='app')": "prepare(settings='app') -> taken",
    "prepare(settings='not_there')": "prepare(settings='not_there') -> taken",
    "prepare(database_parts='A')": "prepare(database_parts='A'): it takes Parts(host=…, …).",
    "prepare(database_parts=Parts(host=1, port='A', user='A', name='A'))": "told of 1, which",
}
RECIPE = {
    "Recipe(metadata=None, extensions='vector')": "'vector' in the extensions of the recipe,",
    "Recipe(metadata=None, sources=None)": "None in the sources of the recipe,",
    "Recipe(metadata=None, seeded='customers')": "'customers' in the seeded of the recipe,",
    "Recipe(metadata=None, commands='a b')": "'a b' in the commands of the recipe,",
    "Recipe(metadata=None, commands=['a b'])": "'a b' in the commands of the recipe,",
    "Recipe(metadata=None, commands=[together('a')])": "'a' in the commands of the recipe,",
    "Recipe(metadata=None, commands=[together(module('a')), ('b',)], sources={'c'})": "taken",
}


@pytest.mark.parametrize("said", [PREPARE, RECIPE], ids=["prepare", "recipe"])
def test_arguments_that_can_not_be_used_are_named(said: dict[str, str], small: Small) -> None:
    output = small.run(small.python, "-c", WALK.format(calls=[*said])).output.splitlines()
    for line, (call, part) in zip(output, said.items(), strict=True):
        assert part in line, call


SETTINGS = """
from pydantic import BaseModel
from pydantic_settings import BaseSettings


class Server(BaseModel):
    host: str = "of no variable"


class Common(BaseSettings):
    log_level: str = "INFO"


class MoreSettings(Common):
    path: str = "the system's"


class Settings(BaseSettings):
    rate: int = 1
"""

SEEN = """
import os
from tests.harness.environment import prepare

prepare(settings="app.other_settings")
print(sorted(n for n in os.environ if n.upper() in ("HOST", "LOG_LEVEL", "PATH", "RATE")))
"""


def test_settings_of_the_shell_are_not_for_tests(small: Small) -> None:
    """In whatever case; but for what other programs read."""
    module = small.path / "app/other_settings.py"
    module.write_text(SETTINGS)
    env = {"HOST": "h", "log_level": "x", "LOG_LEVEL": "y", "Rate": "z"}
    try:
        seen = small.run(small.python, "-c", SEEN, env=env).output.splitlines()[-1]
    finally:
        module.unlink()
    assert seen == "['HOST', 'PATH']"
