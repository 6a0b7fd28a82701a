"""Accounts, and the two that every ledger has."""

import sqlalchemy as sa
from alembic import op

revision = "001"
down_revision = None


def upgrade():
    accounts = op.create_table(
        "account",
        sa.Column("number", sa.Text, primary_key=True),
        sa.Column("pence", sa.BigInteger, nullable=False, server_default="0"),
        sa.CheckConstraint("pence >= 0 OR number = 'equity'", name="not_overdrawn"),
    )
    op.bulk_insert(accounts, [{"number": "equity", "pence": 0}, {"number": "till", "pence": 10000}])


def downgrade():
    op.drop_table("account")
