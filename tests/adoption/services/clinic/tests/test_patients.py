import pytest
from clinic.models import Patient
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession


@pytest.mark.parametrize("name", ["Ada", "Grace"])
async def test_admitted_patients_are_listed(client, name):
    assert (await client.post("/patients", json={"name": name})).status_code == 201
    assert [patient["name"] for patient in (await client.get("/patients")).json()] == [name]


async def test_nobody_is_there_at_first(client):
    assert (await client.get("/patients")).json() == []


async def test_stored(app, client):
    await client.post("/patients", json={"name": "Mary"})
    async with AsyncSession(app.state.engine) as session:
        assert (await session.exec(select(Patient.name))).all() == ["Mary"]


async def test_visit(client):
    patient = (await client.post("/patients", json={"name": "Mary"})).json()
    url = f"/patients/{patient['id']}/visits"
    body = {"patient_id": 0, "reason": "cough"}
    assert (await client.post(url, json=body)).status_code == 201


async def test_visit_of_nobody(client):
    body = {"patient_id": 0, "reason": "cough"}
    assert (await client.post("/patients/7/visits", json=body)).status_code == 404
