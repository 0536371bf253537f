"""commands."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "attempt_call",
        sa.Column("attempt", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("call", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("attempt", "call"),
    )
    with op.batch_alter_table("attempt_call", schema=None) as batch_op:
        batch_op.create_index("attempt_call_call", ["call"], unique=False)

    op.create_table(
        "command",
        sa.Column("uid", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("call", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("backend", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("operation", sa.SmallInteger(), nullable=False),
        sa.Column("attempt", sa.String().with_variant(sa.TEXT(collation="C"), "postgresql"), nullable=False),
        sa.Column("look", sa.Boolean(), nullable=False),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("argv", sa.JSON(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("stderr", sa.Text(), nullable=False),
        sa.Column("start_time", UtcTime(), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("command", schema=None) as batch_op:
        batch_op.create_index("command_call", ["call"], unique=False)
        batch_op.create_index(
            "command_look",
            ["backend", "failed", "uid"],
            unique=False,
            sqlite_where=sa.text("look"),
            postgresql_where=sa.text("look"),
        )
        batch_op.create_index("command_start", ["start_time"], unique=False)
