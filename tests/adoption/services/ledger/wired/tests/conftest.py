from tests.harness import Recipe, module

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe() -> Recipe:
    return Recipe(
        engine="ledger.db:get_engine",
        session="ledger.db:session_factory",
        metadata=None,
        commands=[module("alembic", "upgrade", "head")],
        sources=["migrations"],
        seeded=["account", "alembic_version"],
    )
