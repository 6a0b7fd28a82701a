import pytest
from fastapi.testclient import TestClient
from polls.store import Session
from polls.web import app

from tests.harness import Recipe

pytest_plugins = ["tests.harness.plugin"]


def pytest_harness_recipe():
    return Recipe(metadata=["polls.store:Base.metadata", "polls.store:AuditBase.metadata"])


@pytest.fixture
def client():
    with TestClient(app) as client:
        yield client


@pytest.fixture
def session():
    with Session() as session:
        yield session
