"""Items, and those that are always there."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    items = op.create_table(
        "item",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("stock", sa.Integer, nullable=False),
        sa.CheckConstraint("stock >= 0", name="not_below_nothing"),
    )
    op.create_table(
        "order_",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item", sa.Text, sa.ForeignKey("item.name"), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.bulk_insert(items, [{"name": "pallet", "stock": 100}])


def downgrade():
    op.drop_table("order_")
    op.drop_table("item")
