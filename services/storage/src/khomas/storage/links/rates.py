"""How fast links may be: what operators allow, divided among the processes that move bytes there at the moment."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import select

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database
from khomas.storage.elements.elements import Element
from khomas.storage.links.bucket import Bucket, Throttle
from khomas.storage.links.measures import Measures
from khomas.storage.tables import transfer
from khomas.storage.transfers.turns import ends

_MOVERS: Final = (
    select(transfer.c.lane, transfer.c.lease_owner).where(transfer.c.state == pb.Transfer.STATE_RUNNING).distinct()
)
Link = tuple[str, str]


class Rates:
    """The bounds of streams of this process."""

    def __init__(self, database: Database, measures: Measures, owner: str) -> None:
        self._database = database
        self._measures = measures
        self._owner = owner
        # By the two ends of a bound, and those of the bounds that hold for a link.
        self._buckets: dict[Link, Bucket] = {}
        self._bounds: Mapping[Link, Sequence[Link]] = {}

    async def refresh(self, elements: Mapping[str, Element]) -> None:
        """Learn what operators have set, and who else moves bytes."""
        limits = {(one.source, one.destination): one for one in await self._measures.limits() if one.max_rate}
        sites = {one.id: one.site for one in elements.values()}
        others = await self._others() if limits else []
        for key, limit in limits.items():
            movers = 1 + len({owner for link, owner in others if limit.matches(*link, sites)})
            self._set(key, limit.max_rate / movers)
        for key in self._buckets.keys() - limits.keys():
            del self._buckets[key]
        self._bounds = {
            (source, destination): [key for key, limit in limits.items() if limit.matches(source, destination, sites)]
            for source in (elements if limits else ())
            for destination in elements
        }

    def throttle(self, source: str, destination: str) -> Throttle:
        """Return what holds a stream of this link back."""
        keys = self._bounds.get((source, destination), ())
        return Throttle([self._buckets[key] for key in keys if key in self._buckets])

    def _set(self, key: Link, rate: float) -> None:
        if (bucket := self._buckets.get(key)) is not None:
            bucket.set_rate(rate, time.monotonic())
        else:
            self._buckets[key] = Bucket(rate, time.monotonic())

    async def _others(self) -> list[tuple[Link, str]]:
        """Return the links on which other processes move bytes. One that has died counts until others take over."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_MOVERS)).all()
        return [(ends(row.lane), row.lease_owner) for row in rows if row.lease_owner != self._owner]
