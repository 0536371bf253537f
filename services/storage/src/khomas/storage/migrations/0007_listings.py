"""listings."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("replica", schema=None) as batch_op:
        batch_op.add_column(sa.Column("listing", sa.BigInteger(), server_default="0", nullable=False))

    followed = op.create_table(
        "followed",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("listing", sa.BigInteger(), nullable=False),
        sa.Column("known_time", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.bulk_insert(followed, [{"name": "catalog", "listing": 0, "known_time": None}])
