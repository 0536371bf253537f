"""Parsed specs, the ones used last kept in memory."""

from collections import OrderedDict
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.database import in_values
from khomas.scheduler import tables
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.intake.frozen import Frozen

_KEPT = 4096


class Blueprints:
    """Specs never change, so a parsed one stays good."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Blueprint] = OrderedDict()

    def keep(self, uid: str, blueprint: Blueprint) -> None:
        """Remember one that is at hand."""
        self._kept[uid] = blueprint
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    async def of(self, connection: AsyncConnection, uids: Iterable[str]) -> dict[str, Blueprint]:
        """Get the blueprints of specs, with at most one statement."""
        wanted = set(uids)
        found = {uid: self._kept[uid] for uid in wanted if uid in self._kept}
        for uid in found:
            self._kept.move_to_end(uid)
        if missing := wanted - found.keys():
            query = select(tables.spec).where(in_values(tables.spec.c.uid, missing))
            for row in (await connection.execute(query)).all():
                found[row.uid] = Blueprint(JobSpec.FromString(row.spec), Frozen.unpack(row.frozen))
                self.keep(row.uid, found[row.uid])
        return found
