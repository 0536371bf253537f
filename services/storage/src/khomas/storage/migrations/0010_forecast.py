"""forecast."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "space_sample",
        sa.Column("storage_element", _KEY, nullable=False),
        sa.Column("sample_time", UtcTime(), nullable=False),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("storage_element", "sample_time"),
    )
