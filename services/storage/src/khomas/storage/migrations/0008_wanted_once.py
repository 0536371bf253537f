"""wanted once."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from khomas.kit.database import UtcTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Each with the numbers of its active states.
_TRANSFER = "transfer_active", "transfer", ["file", "destination"], sa.text("state IN (1, 2)")
_COMPARISON = "reconciliation_unfinished", "reconciliation", ["storage_element"], sa.text("state IN (1, 2, 3)")
_RULE = "rule_of_policy", "rule", ["policy", "dataset"], sa.text("policy <> ''")
_CANCELLED = 22
_TRANSFER_REASON_CANCELLED = 60


def upgrade() -> None:
    """Apply. What PostgreSQL has let in more than once is there once then: the first stays as it is."""
    end = {
        "state": _CANCELLED,
        "message": "The same was wanted before.",
        "end_time": datetime.now(UTC),
        "lease_owner": None,
        "lease_expire_time": None,
        "lease_epoch": sa.column("lease_epoch") + 1,
    }
    ended = {**end, "reason": _TRANSFER_REASON_CANCELLED}
    for (name, table, key, where), values in ((_TRANSFER, ended), (_COMPARISON, end), (_RULE, {"policy": ""})):
        rows = sa.table(
            table, sa.column("uid"), sa.column("end_time", UtcTime()), *map(sa.column, {*values} - {"end_time"})
        )
        # The first part of a uid is the time.
        first = sa.select(sa.func.min(rows.c.uid)).where(where).group_by(*map(sa.column, key))
        op.execute(sa.update(rows).where(where, rows.c.uid.not_in(first)).values(values))
        op.create_index(name, table, key, unique=True, sqlite_where=where, postgresql_where=where)
