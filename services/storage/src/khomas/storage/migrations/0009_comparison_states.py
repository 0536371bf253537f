"""comparison states."""

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("reconciliation", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state_time", UtcTime(), nullable=True))
