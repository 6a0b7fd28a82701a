"""Those whom the service serves."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Identity, String, func
from sqlalchemy.orm import Mapped, mapped_column

from ..database import Base


class Customer(Base):
    """A customer; the email address, in lower case, identifies one to people."""

    __tablename__ = "customers"
    __table_args__ = (CheckConstraint("email = lower(email)", name="email"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    full_name: Mapped[str] = mapped_column(String(200))
    email: Mapped[str] = mapped_column(String(254), unique=True)
    phone: Mapped[str | None] = mapped_column(String(16))
    # Counts the changes, for `ETag`.
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __mapper_args__ = {"eager_defaults": True, "version_id_col": version}  # noqa: RUF012
