from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from depot.config import settings

engine = create_async_engine(
    settings.database.url, pool_size=10, max_overflow=5, pool_recycle=1800, pool_pre_ping=True
)
make_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_session():
    async with make_session() as session:
        yield session


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    __table_args__ = (CheckConstraint("stock >= 0", name="not_below_nothing"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    __tablename__ = "order_"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(ForeignKey("item.name"))
    count: Mapped[int]
