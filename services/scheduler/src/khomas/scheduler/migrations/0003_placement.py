"""placement."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "backend",
        sa.Column("backend", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("since", UtcTime(), nullable=True),
        sa.Column("until", UtcTime(), nullable=True),
        sa.Column("bans", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("backend"),
    )
    op.create_table(
        "backend_tally",
        sa.Column("backend", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("what", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("backend", "hour", "what"),
    )
    op.create_table(
        "usage_profile",
        sa.Column("profile", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("backend", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("what", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("profile", "backend", "what", "bucket"),
    )
