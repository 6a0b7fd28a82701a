"""Customers: create, read, list, update, delete."""

from datetime import datetime

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import MISSING, BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from ..dependencies import SessionDep
from ..errors import constraint_of, problems
from ..models import Customer
from .fields import Email, Id, Name, Phone
from .pagination import Cursor, Limit, Page, decode_cursor, encode_cursor

router = APIRouter(prefix="/customers", tags=["customers"])


class CustomerCreate(BaseModel):
    """A new customer."""

    model_config = ConfigDict(extra="forbid")

    full_name: Name
    email: Email
    phone: Phone | None = None


class CustomerUpdate(BaseModel):
    """What to change: a field that is left out keeps its value, a `null` clears it."""

    model_config = ConfigDict(extra="forbid")

    full_name: Name | MISSING = MISSING
    email: Email | MISSING = MISSING
    phone: Phone | MISSING | None = MISSING


class CustomerRead(BaseModel):
    """A customer as stored."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    full_name: str
    email: str
    phone: str | None
    created_at: datetime
    updated_at: datetime


async def _get(session: AsyncSession, customer_id: int) -> Customer:
    customer = await session.get(Customer, customer_id)
    if customer is None:
        raise HTTPException(404, "There is no such customer.")
    return customer


async def _save(session: AsyncSession) -> None:
    # The constraint decides, not a query before: between the two, somebody else could insert.
    try:
        await session.flush()
    except IntegrityError as error:
        if constraint_of(error) == "uq_customers_email":
            raise HTTPException(409, "A customer with this email address exists.") from error
        raise


@router.post("", status_code=201, response_model=CustomerRead, responses=problems(409))
async def create_customer(
    values: CustomerCreate, session: SessionDep, request: Request, response: Response
) -> Customer:
    """Create a customer."""
    customer = Customer(**values.model_dump())
    session.add(customer)
    await _save(session)
    response.headers["Location"] = request.app.url_path_for(
        "read_customer", customer_id=customer.id
    )
    return customer


@router.get("")
async def list_customers(
    session: SessionDep, limit: Limit = 20, cursor: Cursor | None = None
) -> Page[CustomerRead]:
    """List customers in the order of their creation."""
    query = select(Customer).order_by(Customer.id).limit(limit + 1)
    if cursor is not None:
        query = query.where(Customer.id > decode_cursor(cursor))
    customers = list(await session.scalars(query))
    more = len(customers) > limit
    items = [CustomerRead.model_validate(customer) for customer in customers[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].id) if more else None)


@router.get("/{customer_id}", response_model=CustomerRead, responses=problems(404))
async def read_customer(customer_id: Id, session: SessionDep) -> Customer:
    """Read one customer."""
    return await _get(session, customer_id)


@router.patch("/{customer_id}", response_model=CustomerRead, responses=problems(404, 409))
async def update_customer(customer_id: Id, values: CustomerUpdate, session: SessionDep) -> Customer:
    """Change some fields of a customer."""
    customer = await _get(session, customer_id)
    for name, value in values.model_dump().items():
        setattr(customer, name, value)
    await _save(session)
    return customer


@router.delete("/{customer_id}", status_code=204, responses=problems(404, 409))
async def delete_customer(customer_id: Id, session: SessionDep) -> None:
    """Delete a customer."""
    await session.delete(await _get(session, customer_id))
    await _save(session)
