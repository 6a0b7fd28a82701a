"""Books, in Postgres."""

from os import environ

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

options = {"poolclass": NullPool} if "TESTING" in environ else {"pool_size": 20}
db = create_async_engine(environ["DB_URL"], **options)
Session = async_sessionmaker(db, class_=AsyncSession, expire_on_commit=False)


class Model(DeclarativeBase):
    pass


class Book(Model):
    __tablename__ = "book"
    __table_args__ = (UniqueConstraint("isbn"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str] = mapped_column(String(13))
    title: Mapped[str]
