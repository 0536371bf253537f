"""Comparisons that begin by themselves."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.storage.v1 import reconciliation_pb2 as pb
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.storage.reconciling.policies import Policies
from khomas.storage.reconciling.runs import begun, new_row
from khomas.storage.reconciling.tables import care


@dataclass(frozen=True, slots=True)
class Schedule:
    """Begins a quick comparison of each StorageElement as often as its care policy says."""

    database: Database
    log: EventLog
    policies: Policies
    grace: timedelta

    async def work(self) -> None:
        """Begin what is due."""
        await self.policies.ensure_rows()
        policies = await self.policies.all()
        for name, policy in policies.items():
            if policy.reconcile_interval:
                async with self.database.write() as connection:
                    await self._begin(connection, name, policy.reconcile_interval)

    async def _begin(self, connection: AsyncConnection, element: str, interval: timedelta) -> None:
        now = datetime.now(UTC)
        ours = care.c.storage_element == element
        # Those that are new do not all begin at once.
        first = now + interval * random.random()  # noqa: S311
        await connection.execute(update(care).where(ours, care.c.reconcile_next.is_(None)).values(reconcile_next=first))
        due = update(care).where(ours, care.c.reconcile_next <= now).values(reconcile_next=now + interval)
        if (await connection.execute(due.returning(care.c.storage_element))).first() is not None:
            await begun(connection, self.log, new_row(element, pb.Reconciliation.MODE_QUICK, self.grace, "policy"))
