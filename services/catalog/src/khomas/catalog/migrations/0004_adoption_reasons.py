"""adoption reasons."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("adoption", schema=None) as batch_op:
        batch_op.add_column(sa.Column("reason", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("reason_message", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("reason_time", UtcTime(), nullable=True))
