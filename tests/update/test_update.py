"""`copier update`: what a newer template makes of projects that have lived for a while.

The newer template is one that does not exist yet: see `releases.change_everything`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Render
from tests.support.command import run
from tests.support.copier import copier, unmerged, update
from tests.support.embedded import remove_clusters, servers
from tests.support.once import made_once
from tests.support.project import ANSWERS_FILE, CODE_ANSWERS, Project, files
from tests.support.releases import FUTURE, append, commit, tag_releases
from tests.support.small import Small, passed, replace, small_service
from tests.support.template import FUTURE as PRESENT
from tests.support.tiers import quick, slow
from tests.variants import ALL_OFF, FEATURES
from tests.variants import VARIANTS as COUNTED

CONCERNS = [
    "copier.yml",
    "CHANGELOG.md",
    "template/{{_copier_conf.answers_file}}.jinja",
    "template/*code_answers*",
]

# All features, none, and one that is mixed.
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all off": ALL_OFF,
    "no redis, other names": {
        "use_redis": False,
        "package_name": "desk",
        "project_name": "Zoë's",
        "ci": "gitlab",
    },
}

HISTORY = "migrations/versions/"
INITIAL = f"{HISTORY}0001_initial.py"


# Whose they are: an update never touches them.
USERS = (
    *("app/", "desk/", "migrations/", "knowledge/", "tests/"),
    *("ingest.py", "README.md", "CHANGELOG.md"),
)


def is_users(name: str) -> bool:
    """Whether a rendered file is the user's from then on."""
    return name.startswith(USERS) and not name.startswith("tests/harness/")


def of_user(project: Project) -> dict[str, bytes]:
    """The files of a project that are its user's."""
    return {name: text for name, text in files(project.path).items() if is_users(name)}


def differences(project: Project, fresh: Path) -> set[str]:
    """The files that differ from those of a render from nothing."""
    now, expected = files(project.path), files(fresh)
    return {name for name in now.keys() | expected if now.get(name) != expected.get(name)}


Scaffold = Callable[..., Project]
Rendered = Callable[..., Path]


@pytest.fixture
def fresh(shared: Path, versions: Path) -> Rendered:
    """A render from nothing, never changed: `fresh("1.0.0", use_redis=False)`."""

    def give(version: str, **answers: Any) -> Path:
        data = [word for name in answers for word in ("--data", f"{name}={answers[name]}")]
        options = ["--defaults", "--quiet", "-r", version, *data]
        key = hashlib.sha256(repr(options).encode()).hexdigest()[:12]
        return made_once(
            shared / "fresh" / key,
            lambda path: copier("copy", *options, versions, path, cwd=versions),
        )

    return give


@pytest.fixture
def scaffold(fresh: Rendered, tmp_path: Path, python: Path) -> Iterator[Scaffold]:
    """A project made from a version, under git: `scaffold("1.0.0", use_redis=False)`."""

    def make(version: str, **answers: Any) -> Project:
        path = tmp_path / f"since-{version}"
        shutil.copytree(fresh(version, **answers), path)
        run("git", "init", "--quiet", cwd=path)
        commit(path, "Scaffold")
        return Project.read(path, python)

    yield make
    remove_clusters(tmp_path)


def asked(project: Project, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Those answers for which the project's version asked: a later question has its default."""
    return {name: answer for name, answer in answers.items() if name in project.answers}


def starting_points(repository: Path) -> list[str]:
    """The releases so far; before the first, the working tree."""
    return tag_releases(repository) or [PRESENT]


def of_untouched(variant: str, repository: Path) -> list[str]:
    """The versions that projects without edits are from: of one variant all, or the first."""
    released = starting_points(repository)
    return list(dict.fromkeys([*released, PRESENT])) if variant == "all off" else released[:1]


def merge_code(project: Project, to: str) -> None:
    """Commit what an update brought, and merge the code as README says."""
    commit(project.path, "Update")
    update(project, "-a", CODE_ANSWERS, to=to)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", quick("defaults", of=VARIANTS, others=slow))
def test_untouched_project_becomes_a_fresh_one(
    variant: str, scaffold: Scaffold, fresh: Rendered, versions: Path
) -> None:
    """What is the template's by an update; the code, where it is merged."""
    answers = VARIANTS[variant]
    for start in of_untouched(variant, versions):
        project = scaffold(start, **answers)
        expected = fresh(FUTURE, **asked(project, answers))
        before = of_user(project)
        update(project)
        assert not unmerged(project)
        assert of_user(project) == before
        differ = {name for name in differences(project, expected) if not is_users(name)}
        assert differ == {CODE_ANSWERS}, f"from {start}"
        assert "of the future" in (project.path / "tests/harness/golden/build.py").read_text()
        merge_code(project, FUTURE)
        assert not unmerged(project)
        differ = differences(project, expected)
        assert not {name for name in differ if not name.startswith(HISTORY)}, f"from {start}"


@pytest.mark.slow
def test_code_is_merged_where_the_rest_was_updated_twice(
    scaffold: Scaffold, fresh: Rendered, versions: Path
) -> None:
    """The merge begins where the code is."""
    project = scaffold(starting_points(versions)[0], **ALL_OFF)
    update(project, to=PRESENT)
    commit(project.path, "Update")
    update(project)
    merge_code(project, FUTURE)
    assert not unmerged(project)
    differ = differences(project, fresh(FUTURE, **asked(project, ALL_OFF)))
    assert not {name for name in differ if not name.startswith(HISTORY)}


# What a project of ours has besides, in files of its own and at the end of files that are there.
OURS = {
    "app/models/note.py": """\
from sqlalchemy.orm import Mapped, mapped_column

from ..database import Base


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
""",
    "app/api/notes.py": """\
from fastapi import APIRouter

from ..dependencies import SessionDep
from ..models.note import Note

router = APIRouter(prefix="/notes")


@router.post("", status_code=201)
async def add_note(text: str, session: SessionDep) -> None:
    session.add(Note(text=text))
""",
    "migrations/versions/0002_notes.py": """\
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notes")),
    )


def downgrade() -> None:
    op.drop_table("notes")
""",
    "tests/integration/test_notes.py": """\
import pytest
from app.models.note import Note
from sqlalchemy import select


@pytest.mark.integration
@pytest.mark.ours
async def test_note_is_stored(async_client, db_session, text):
    response = await async_client.post("/api/v1/notes", params={"text": text})
    assert response.status_code == 201
    assert await db_session.scalar(select(Note.text)) == text
""",
}
ADDED = {
    "app/models/__init__.py": "\nfrom .note import Note  # noqa\n",
    "app/api/__init__.py": "\nfrom . import notes  # noqa\n\nrouter.include_router(notes.router)\n",
    "tests/conftest.py": '\n\n@pytest_asyncio.fixture\nasync def text():\n    return "ours"\n',
}
DELETED = {
    "tests/workflow/test_life_of_a_customer.py": 1,
    "tests/integration/test_isolation.py": 8,
}
"""Examples, and how many tests each has."""

TESTS_OF_1_0_0 = {"defaults": 563, "all off": 184}
"""How many tests passed in a variant's render of the first release: its tests stay as they are."""


def live_in(project: Project) -> dict[str, bytes]:
    """What years do to a project. Returns the files that an update must leave as they are."""
    path = project.path
    package = project.package.name
    for name in files(path):
        if is_users(name) and name.endswith((".py", ".md", ".toml")):
            append(path / name, "\nOurs.\n" if name.endswith(".md") else "\n# Ours.\n")
    for name in DELETED:
        (path / name).unlink()
    for name, text in OURS.items():
        ours = path / name.replace("app/", f"{package}/", 1)
        ours.write_text(text.replace("from app.", f"from {package}."))
    for name, text in ADDED.items():
        append(path / name.replace("app/", f"{package}/", 1), text)
    replace(
        path / "pyproject.toml",
        'testpaths = ["tests"]\n',
        'testpaths = ["tests"]\nmarkers = ["ours: a marker of ours"]\n',
    )
    replace(
        path / "pyproject.toml",
        '    "uvicorn[standard]',
        '    "typing-extensions>=4",\n    "uvicorn[standard]',
    )
    replace(path / "Makefile", "make check      f", "make check      our f")
    commit(path, "Years of work")
    return of_user(project)


@pytest.mark.parametrize("variant", quick("all off", of=VARIANTS, others=slow))
def test_project_that_has_lived(variant: str, scaffold: Scaffold, versions: Path) -> None:
    project = scaffold(starting_points(versions)[0], **VARIANTS[variant])
    append(project.path / "tests/harness/plugin.py", "# Ours, though it is the template's.\n")
    before = live_in(project)
    said = update(project)
    assert not unmerged(project)
    assert "Ours" not in (project.path / "tests/harness/plugin.py").read_text(), "replaced"
    assert "--diff-filter=U" in said
    assert of_user(project) == before
    configuration = (project.path / "pyproject.toml").read_text()
    for text in ("ours: a marker", '"typing-extensions>=4"', '"pytest-asyncio>=1.5.0,<99"'):
        assert text in configuration
    assert "our formatter" in (project.path / "Makefile").read_text()
    answers = Project.read(project.path, project.python).answers
    assert answers["use_future"] is True
    assert answers["_commit"] == FUTURE
    options, passed, skipped = ["-m", "ours"], 1, 0
    if variant in TESTS_OF_1_0_0:  # the whole of them
        passed += TESTS_OF_1_0_0[variant] - sum(DELETED.values())
        options, skipped = ["-n", "2"], COUNTED[variant].skipped
    project.pytest("--no-cov", *options, passed=passed, skipped=skipped)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", quick("all off", of=VARIANTS, others=slow))
def test_code_that_has_lived_is_merged(
    variant: str, scaffold: Scaffold, fresh: Rendered, versions: Path
) -> None:
    """A conflict is where both have changed the same lines; whatever both have added is there."""
    answers = VARIANTS[variant]
    start = starting_points(versions)[0]
    project = scaffold(start, **answers)
    package = project.package.name
    old, new = (files(fresh(v, **asked(project, answers))) for v in (start, PRESENT))
    for name in files(project.path):  # at the beginning, where the template changes little
        if is_users(name) and name.endswith(".py") and (project.path / name).stat().st_size:
            path = project.path / name
            path.write_text(f"# Ours.\n{path.read_text()}")
    before = live_in(project)
    update(project, to=PRESENT)
    merge_code(project, PRESENT)
    after = files(project.path)
    conflicts = set(unmerged(project))
    for name, text in before.items():
        if name in DELETED:
            continue
        ours = set(text.splitlines()) - set(old.get(name, b"").splitlines())
        theirs = set(new.get(name, b"").splitlines()) - set(old.get(name, b"").splitlines())
        merged = set(after[name].splitlines())
        assert ours <= merged, f"{name} lost {ours - merged}"
        assert theirs <= merged, f"{name} lacks {theirs - merged}"
        if old.get(name) == new.get(name):
            assert (after[name], name in conflicts) == (text, False), name
        markers = [line for line in after[name].splitlines() if line.startswith(b"<<<<<<< ")]
        assert bool(markers) == (name in conflicts), name
    print(f"{package}: {len(before)} files, conflicts in {sorted(conflicts)}")
    assert after.keys().isdisjoint(DELETED)
    assert new.keys() - old.keys() <= after.keys()


@pytest.mark.slow
def test_features_are_switched_where_the_code_is_as_new_as_the_rest(scaffold: Scaffold) -> None:
    project = scaffold(PRESENT, **ALL_OFF)
    update(project)
    commit(project.path, "Update")
    switch = ["update", "--defaults", "--data", "use_redis=true"]
    assert "Merge it first" in copier(*switch, cwd=project.path, status=1).output
    named = [*switch, "-a", CODE_ANSWERS]
    assert "leave out `-a`" in copier(*named, cwd=project.path, status=1).output
    assert not project.run("git", "status", "--porcelain").output
    update(project, "-a", CODE_ANSWERS)
    commit(project.path, "Merge the code")
    update(project, "--data", "use_redis=true")
    assert not unmerged(project)
    assert files(project.path)[CODE_ANSWERS] == files(project.path)[ANSWERS_FILE]


@pytest.mark.slow
def test_answers_of_the_code_stay_deleted(scaffold: Scaffold) -> None:
    """New ones would say that the code is as new as the rest: what is between would be lost."""
    project = scaffold(PRESENT, **ALL_OFF)
    (project.path / CODE_ANSWERS).unlink()
    commit(project.path, "What is this?")
    said = update(project)
    assert CODE_ANSWERS not in files(project.path)
    assert "copier update -a" not in said
    commit(project.path, "Update")
    restore = re.findall(r"git checkout .*", said)[0]
    project.run("sh", "-c", restore)
    assert f"_commit: {PRESENT}\n" in (project.path / CODE_ANSWERS).read_text()
    project.run("git", "reset", "--hard", "--quiet")
    update(project, "--data", "use_redis=true")
    assert CODE_ANSWERS not in files(project.path)
    commit(project.path, "Switch")
    merge = [sys.executable, "-m", "copier", "update", "--defaults", "-a", CODE_ANSWERS]
    said = project.run(*merge, status=1).output
    assert "Template not found" in said


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["defaults", "all off"])
@pytest.mark.parametrize("feature", FEATURES)
def test_feature_is_switched(
    feature: str, variant: str, scaffold: Scaffold, fresh: Rendered
) -> None:
    """Off where it was on, on where it was off: as if it had been answered so at first."""
    switched = {**VARIANTS[variant], feature: variant != "defaults"}
    project = scaffold(PRESENT, **VARIANTS[variant])
    update(project, "--data", f"{feature}={switched[feature]}", to=":current:")
    assert not unmerged(project)
    differ = differences(project, fresh(PRESENT, **switched))
    assert not {name for name in differ if not name.startswith(HISTORY)}, "all but history"


@pytest.mark.slow
@pytest.mark.parametrize("feature", FEATURES)
def test_feature_is_switched_off_in_a_project_that_has_lived(
    feature: str, scaffold: Scaffold, fresh: Rendered
) -> None:
    """Conflicts are the feature's own, where an edit is beside it; no edit is lost."""
    project = scaffold(PRESENT)
    before = live_in(project)
    with_it, without = files(fresh(PRESENT)), files(fresh(PRESENT, **{feature: False}))
    removed = with_it.keys() - without.keys()
    of_feature = {name for name, text in with_it.items() if without.get(name) != text}
    update(project, "--data", f"{feature}=false", to=":current:")
    assert set(unmerged(project)) <= of_feature - removed
    after = files(project.path)
    assert removed
    assert after.keys().isdisjoint(removed | DELETED.keys())
    for name, text in before.items():
        if name not in of_feature:
            assert after[name] == text, name
        elif name not in removed:
            added = set(text.splitlines()) - set(with_it[name].splitlines())
            assert added <= set(after[name].splitlines()), name


@pytest.mark.slow
def test_switched_feature_gets_a_migration(scaffold: Scaffold) -> None:
    """As the message after the update says."""
    project = scaffold(PRESENT, use_assistant=False, use_auth=False)
    before = files(project.path)[INITIAL]
    assert "alembic revision" in update(project, "--data", "use_auth=true", to=PRESENT)
    assert files(project.path)[INITIAL] == before
    test = ["--no-cov", "tests/integration/test_migrations.py"]
    project.pytest(*test, status=1, passed=2, failed=1)
    with servers(project) as running:
        project.tool("alembic", "upgrade", "head", env=running.urls)
        revise = ["revision", "--autogenerate", "--rev-id", "0002", "-m", "accounts"]
        project.tool("alembic", *revise, env=running.urls)
    project.pytest(*test, passed=3)


@pytest.mark.slow
def test_feature_that_was_edited_is_not_lost_silently(scaffold: Scaffold) -> None:
    project = scaffold(PRESENT)
    client = project.package / "redis_client.py"
    routers = project.package / "api" / "__init__.py"
    append(client, "# Ours.\n")
    replace(routers, "problems(429, 503)", "problems(429, 500, 503)")
    commit(project.path, "Work on the client")
    said = update(project, "--data", "use_redis=false", to=PRESENT)
    assert "app/api/__init__.py" in unmerged(project)
    project.run("git", "add", "app/api/__init__.py")  # without a look
    hook = Path(sys.executable).with_name("pre-commit")
    refused = project.run(hook, "run", "conflict-markers", status=1)
    assert "app/api/__init__.py" in refused.output
    removed = project.run("git", "diff", "--name-only", "--diff-filter=D").output.splitlines()
    assert "app/redis_client.py" in removed
    assert "--diff-filter=D" in said
    project.run("git", "restore", "app/redis_client.py")
    assert client.read_text().endswith("# Ours.\n")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("package_name=other", "can't rename the package"),
        ("scope=harness", "can't change the scope"),
        ("use_redis=true", "No feature is switched"),  # it is true already
    ],
)
def test_answer_that_cannot_change(answer: str, reason: str, scaffold: Scaffold) -> None:
    project = scaffold(PRESENT, **{**ALL_OFF, "use_redis": True})
    data = ["--data", answer]
    done = copier("update", "--defaults", *data, cwd=project.path, status=1)
    assert reason in done.output
    assert not project.run("git", "status", "--porcelain").output


@pytest.mark.slow
def test_project_in_a_folder_of_its_repository(fresh: Rendered, tmp_path: Path) -> None:
    """What was deleted stays so; without its tests' folder, an update is asked for by that."""
    project = tmp_path / "services" / "desk"
    shutil.copytree(fresh(PRESENT, **ALL_OFF), project)
    run("git", "init", "--quiet", cwd=tmp_path)
    commit(tmp_path, "Scaffold")
    for name in files(project):
        if not is_users(name) and name not in (ANSWERS_FILE, CODE_ANSWERS):
            (project / name).unlink()
    (project / "tests").rename(project / "qa")
    commit(tmp_path, "Live")
    before = files(project)
    command = ["update", "--defaults", "-r", FUTURE]
    said = copier(*command, cwd=project, status=1).output
    assert "There is no harness in tests/" in said
    copier(*command, "-x", "/tests/", cwd=project)
    now = files(project)
    assert {name for name in now.keys() | before if now.get(name) != before.get(name)} == {
        ANSWERS_FILE
    }


# In the place of git: ends Copier when the new version is over the project, edits not yet on top.
KILLER = """\
#!/bin/sh
case " $* " in *" apply "*) kill -9 $PPID; exit ;; esac
exec {git} "$@"
"""


@pytest.mark.slow
def test_interrupted_update_is_repeated(scaffold: Scaffold, tmp_path: Path) -> None:
    project = scaffold(PRESENT)
    before = live_in(project)
    makefile = project.path / "Makefile"
    killer = tmp_path / "bin" / "git"
    killer.parent.mkdir()
    killer.write_text(KILLER.format(git=shutil.which("git")))
    killer.chmod(0o755)
    path = f"{killer.parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "copier", "update", "--defaults", "-r", FUTURE]
    project.run(*command, env={"PATH": path}, status=-signal.SIGKILL)
    assert "our formatter" not in makefile.read_text(), "killed at the worst moment"
    assert "is dirty" in project.run(*command, status=1).output
    # As README says.
    project.run("git", "reset", "--hard", "--quiet")
    project.run("git", "clean", "-d", "--force", "--quiet")
    update(project)
    assert not unmerged(project)
    assert "our formatter" in makefile.read_text()
    assert of_user(project) == before
    assert b"of the future" in files(project.path)["tests/harness/golden/build.py"]


@pytest.mark.slow
def test_golden_database_of_an_older_harness_is_replaced(scaffold: Scaffold) -> None:
    project = scaffold(PRESENT, **ALL_OFF)
    test = ["--no-cov", "tests/integration/test_seed_database.py"]
    project.pytest(*test, passed=3)
    update(project)
    story = project.pytest(*test, passed=3).golden()[1]
    assert story.startswith("built in")
    assert "the harness changed" in story
    assert project.pytest(*test, passed=3).golden()[1] == "reused"


def test_edited_harness_is_noticed(scaffold: Scaffold) -> None:
    project = scaffold(PRESENT, **ALL_OFF)
    test = ["--no-cov", "tests/unit/test_pagination.py"]
    assert "tests/harness" not in project.tool("pytest", *test).output.partition("collected")[0]
    append(project.path / "tests/harness/golden/build.py", "# Ours.\n")
    (project.path / "tests/harness/ours.py").write_text("")
    (project.path / "tests/harness/.golden.py.swp").write_text("")  # an editor's
    said = project.tool("pytest", *test).output
    assert "tests/harness: golden/build.py, ours.py edited here" in said
    assert "tests/conftest.py" in said


IMPORTED_BY_SERVICES = ("__init__", "environment", "plugin", "fixtures", "valkey")


@pytest.mark.thorough
def test_no_release_takes_a_file_away(versions: Path, fresh: Rendered) -> None:
    """An update removes what is gone from the template, with the user's edits in it.

    Those of the harness are nobody's to edit. Of them, what services import stays.
    """
    imported = {f"tests/harness/{name}.py" for name in IMPORTED_BY_SERVICES}
    newest = files(fresh(PRESENT))
    assert imported <= newest.keys()
    for version in starting_points(versions):
        gone = files(fresh(version)).keys() - newest.keys()
        edited = {name for name in gone if not name.startswith("tests/harness/")}
        assert not edited | gone & imported, f"since {version}"


def test_no_release_takes_an_answer_away(versions: Path) -> None:
    """Copier drops an answer that is none any more, without a word."""

    def questions(version: str) -> dict[str, Any]:
        text = run("git", "show", f"{version}:copier.yml", cwd=versions).output
        loaded: dict[str, Any] = yaml.safe_load(text)
        return {name: q for name, q in loaded.items() if isinstance(q, dict) and "help" in q}

    newest = questions(PRESENT)
    for version in starting_points(versions):
        for name, question in questions(version).items():
            assert name in newest, f"since {version}"
            choices, now = question.get("choices", []), newest[name].get("choices", [])
            values = choices.values() if isinstance(choices, dict) else choices
            assert set(values) <= set(now.values() if isinstance(now, dict) else now), name


@pytest.mark.slow
def test_project_older_than_a_question(scaffold: Scaffold, versions: Path) -> None:
    """Made before there was a scope: `_exclude` and validators ask for it all the same."""
    log = ["log", "--format=%H", "-G", "^scope:", "--", "copier.yml"]
    first = run("git", *log, cwd=versions).output.split()[-1]
    parent = run("git", "rev-parse", "--verify", f"{first}^", cwd=versions, status=None)
    if parent.status:
        pytest.skip("a shallow clone: the history does not reach back so far")
    project = scaffold(parent.output.strip())
    assert "scope" not in project.answers
    before = live_in(project)
    update(project)
    assert not unmerged(project)
    assert of_user(project) == before
    assert Project.read(project.path, project.python).answers["scope"] == "service"


@pytest.mark.slow
def test_package_renamed_by_its_user(scaffold: Scaffold) -> None:
    """Copier is told afterwards, and follows in the files that it merges."""
    project = scaffold(PRESENT, **ALL_OFF)
    project.package.rename(project.path / "shop")
    commit(project.path, "Rename the package")
    before = files(project.path / "shop")
    update(project, "--data", "package_name=shop")
    assert not unmerged(project)
    assert files(project.path / "shop") == before
    assert not project.package.exists()
    assert "--cov=shop" in (project.path / "pyproject.toml").read_text()


@pytest.mark.slow
def test_code_of_a_renamed_package_is_merged(scaffold: Scaffold) -> None:
    """What is new in the code would be lost without a word where the package is not found."""
    project = scaffold(PRESENT, **ALL_OFF)
    main = project.path / "shop" / "main.py"
    project.package.rename(main.parent)
    main.write_text(f"# Ours.\n{main.read_text()}")
    commit(project.path, "Rename the package")
    update(project, "--data", "package_name=shop")
    commit(project.path, "Update")
    merge = ["update", "--defaults", "-a", CODE_ANSWERS, "-r", FUTURE]
    for told in [], ["--data", "package_name=shop"]:
        said = copier(*merge, *told, cwd=project.path, status=1).output
        assert 'There is no package "app"' in said
        assert not project.run("git", "status", "--porcelain").output
    # As it says.
    replace(project.path / CODE_ANSWERS, "package_name: app", "package_name: shop")
    commit(project.path, "Tell of it")
    update(project, "-a", CODE_ANSWERS)
    assert not unmerged(project)
    assert main.read_text().startswith("# Ours.\n")
    assert main.read_text().endswith("# of the future\n")
    assert not project.package.exists()


@pytest.fixture
def smalls(fresh: Rendered, tmp_path: Path, python: Path) -> Iterator[list[Small]]:
    """Two checkouts of a service, with harnesses of different versions."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                small_service(Project.read(fresh(version, **ALL_OFF), python), tmp_path / version)
            )
            for version in (PRESENT, FUTURE)
        ]
    remove_clusters(tmp_path)


@pytest.mark.slow
def test_two_harnesses_share_a_server(
    smalls: list[Small], rendered: Render, tmp_path: Path
) -> None:
    host = rendered(**ALL_OFF).copy_to(tmp_path / "host")
    with servers(host) as running:
        url = {"TEST_DATABASE_URL": running.urls["DATABASE_URL"].replace("/service?", "/postgres?")}
        for story in ("built", "reused"):
            processes = [small.begin(**url) for small in smalls]
            ended = [small.end(p) for small, p in zip(smalls, processes, strict=True)]
            goldens = [passed(run).golden() for run in ended]
            assert all(how.startswith(story) for _, how in goldens)
        with smalls[0].console(**url) as console:
            look = console.look()
        assert len(look.held) == 2, "each has its own golden database"
        assert set(look.ours) == set(look.held) == {name for name, _ in goldens}
        assert look.held[goldens[0][0]] == look.held[goldens[1][0]]


@pytest.mark.slow
def test_answers_file_is_kept(scaffold: Scaffold) -> None:
    answers = {"package_name": "metrics", "project_name": 'It\'s "ours"', "ci": "none"}
    project = scaffold(PRESENT, use_redis=False, **answers)
    before = dict(project.answers)
    update(project)
    after = dict(Project.read(project.path, project.python).answers)
    assert after == {**before, "_commit": FUTURE, "use_future": True}
    assert (project.path / ANSWERS_FILE).read_text().startswith("# Written by Copier")
