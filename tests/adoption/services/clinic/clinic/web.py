"""The engine is made when the application starts, and kept on it."""

from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, HTTPException, Request
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from clinic.models import Patient, Visit
from clinic.settings import get_settings

router = APIRouter()


@asynccontextmanager
async def lifespan(app):
    app.state.engine = create_async_engine(str(get_settings().clinic_dsn), pool_size=3)
    yield
    await app.state.engine.dispose()


@router.post("/patients", status_code=201)
async def admit(request: Request, patient: Patient) -> Patient:
    async with AsyncSession(request.app.state.engine) as session:
        session.add(patient)
        await session.commit()
        await session.refresh(patient)
        return patient


@router.get("/patients")
async def patients(request: Request) -> list[Patient]:
    async with AsyncSession(request.app.state.engine) as session:
        return list(await session.exec(select(Patient).order_by(Patient.name)))


@router.post("/patients/{number}/visits", status_code=201)
async def visit(request: Request, number: int, visit: Visit) -> Visit:
    async with AsyncSession(request.app.state.engine, expire_on_commit=False) as session:
        if await session.get(Patient, number) is None:
            raise HTTPException(404)
        visit.patient_id = number
        session.add(visit)
        await session.commit()
        return visit


def create_app():
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app
