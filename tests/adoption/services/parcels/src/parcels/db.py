"""The engine, as the configuration says; JSON by msgspec, told to each connection."""

import os
from dataclasses import dataclass, field
from functools import cache

import msgspec
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Parcel(Base):
    __tablename__ = "parcel"

    number: Mapped[str] = mapped_column(primary_key=True)
    contents: Mapped[dict] = mapped_column(JSONB)
    state: Mapped[str] = mapped_column(default="posted")


@dataclass
class DatabaseConfig:
    url: str = field(default_factory=lambda: os.environ["PARCELS_DATABASE_URL"])
    pool_size: int = 5
    max_overflow: int = 2

    def make_engine(self):
        engine = create_async_engine(
            self.url,
            pool_size=self.pool_size,
            max_overflow=self.max_overflow,
            pool_pre_ping=True,
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
        )

        @event.listens_for(engine.sync_engine, "connect")
        def set_codec(connection, _):
            connection.run_async(
                lambda driver: driver.set_type_codec(
                    "jsonb",
                    encoder=lambda text: b"\x01" + text.encode(),
                    decoder=lambda binary: msgspec.json.decode(binary[1:]),
                    schema="pg_catalog",
                    format="binary",
                )
            )

        return engine


@cache
def get_engine():
    return DatabaseConfig().make_engine()


def new_session():
    return async_sessionmaker(get_engine(), class_=AsyncSession, expire_on_commit=False)()
