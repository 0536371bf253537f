"""leftovers."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_LEFT = sa.text("state + 0 > 20 AND path <> ''")


def upgrade() -> None:
    """Apply."""
    op.create_index("transfer_left", "transfer", ["end_time"], sqlite_where=_LEFT, postgresql_where=_LEFT)
