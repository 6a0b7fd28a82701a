import pytest
from fastapi.testclient import TestClient
from polls.store import AuditBase, Base, Session, engine
from polls.web import app


@pytest.fixture(scope="session", autouse=True)
def tables():
    for base in (Base, AuditBase):
        base.metadata.drop_all(engine)
        base.metadata.create_all(engine)


@pytest.fixture(autouse=True)
def emptied(tables):
    yield
    with engine.begin() as connection:
        for base in (Base, AuditBase):
            for table in reversed(base.metadata.sorted_tables):
                connection.execute(table.delete())


@pytest.fixture
def client():
    with TestClient(app) as client:
        yield client


@pytest.fixture
def session():
    with Session() as session:
        yield session
