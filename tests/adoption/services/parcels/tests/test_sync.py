"""With Litestar's client for tests without async: the application has a thread, and a loop, of its own."""

import pytest
from litestar.testing import TestClient
from parcels.app import create_app


@pytest.fixture
def sync_client(tables):
    with TestClient(create_app()) as client:
        yield client


def test_sent(sync_client):
    assert sync_client.post("/parcels/C3", json={"hat": 1}).status_code == 201
    assert sync_client.get("/parcels/C3").json()["contents"] == {"hat": 1}


def test_none(sync_client):
    assert sync_client.get("/parcels/D4").status_code == 404
