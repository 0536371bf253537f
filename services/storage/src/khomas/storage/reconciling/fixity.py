"""Reads every byte of every replica again within a period: those first whose last look is the longest ago."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final

import grpc
from sqlalchemy import Row, or_, select, update

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_element_pb2
from khomas.kit.database import Database, in_values
from khomas.kit.errors import DomainError
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements
from khomas.storage.protocols.interface import ProtocolFault
from khomas.storage.reconciling.looking import Expected, Looking
from khomas.storage.reconciling.policies import Policies, Policy
from khomas.storage.reconciling.recording import Recording
from khomas.storage.reconciling.sides import Wanted
from khomas.storage.reconciling.tables import care
from khomas.storage.tables import replica

log = logging.getLogger(__name__)

ORIGIN: Final = "fixity"
_FILES: Final = 500
# What one batch may take at the rate of its StorageElement.
_BATCH: Final = timedelta(minutes=1)
# Whoever dies with a batch holds the next one up for so long.
_TAKEN: Final = timedelta(hours=1)
_AFTER_TROUBLE: Final = timedelta(minutes=10)
# Begun early enough to be done in time.
_DUE: Final = 2 / 3


@dataclass(frozen=True, slots=True)
class Fixity:
    """Takes the next batch of each StorageElement when its time has come."""

    database: Database
    catalog: Catalog
    elements: Elements
    policies: Policies
    looking: Looking
    recording: Recording

    async def work(self) -> None:
        """Do all batches that are due."""
        for name, element in (await self.elements.all()).items():
            # Asked anew for each: a batch may take long, and somebody may have changed it meanwhile.
            policy = (await self.policies.all())[name]
            if policy.verify_period and policy.verify_bytes_per_second and _on_disk(element):
                await self._next(element, policy)

    async def _next(self, element: Element, policy: Policy) -> None:
        """Read one batch, and say when the next one follows: the rate holds on the average."""
        rows = await self._due(element, policy)
        if not rows or not await self._taken(element):
            return
        now = datetime.now(UTC)
        size_bytes = sum(row.size_bytes for row in rows)
        pause = timedelta(seconds=size_bytes / policy.verify_bytes_per_second)
        try:
            await self._read(element, rows)
        except (ProtocolFault, DomainError) as error:
            log.warning("fixity.stopped", extra={"storage_element": element.id, "error": error.message})
            pause = _AFTER_TROUBLE
        except grpc.aio.AioRpcError as error:
            log.warning("fixity.stopped", extra={"storage_element": element.id, "error": error.details()})
            pause = _AFTER_TROUBLE
        await self._set(element, now + pause)

    async def _due(self, element: Element, policy: Policy) -> Sequence[Row[Any]]:
        before = datetime.now(UTC) - policy.verify_period * _DUE
        available = file_pb2.Replica.STATE_AVAILABLE
        there = select(replica).where(replica.c.storage_element == element.id, replica.c.state == available)
        async with self.database.read() as connection:
            # Two questions, because the databases do not agree where NULL is in an order.
            rows = list((await connection.execute(there.where(replica.c.verify_time.is_(None)).limit(_FILES))).all())
            if len(rows) < _FILES:
                old = there.where(replica.c.verify_time <= before).order_by(replica.c.verify_time)
                rows += (await connection.execute(old.limit(_FILES - len(rows)))).all()
        budget = policy.verify_bytes_per_second * _BATCH.total_seconds()
        sizes = accumulate(row.size_bytes for row in rows)
        # The first one is read however large it is.
        return [
            row for number, (row, so_far) in enumerate(zip(rows, sizes, strict=True)) if not number or so_far <= budget
        ]

    async def _taken(self, element: Element) -> bool:
        """Take the batch, unless another process did or its time has not come."""
        await self.policies.ensure_rows()
        now = datetime.now(UTC)
        ready = or_(care.c.verify_next.is_(None), care.c.verify_next <= now)
        statement = update(care).where(care.c.storage_element == element.id, ready).values(verify_next=now + _TAKEN)
        async with self.database.write() as connection:
            return (await connection.execute(statement.returning(care.c.storage_element))).first() is not None

    async def _set(self, element: Element, moment: datetime) -> None:
        async with self.database.write() as connection:
            await connection.execute(
                update(care).where(care.c.storage_element == element.id).values(verify_next=moment)
            )

    async def _read(self, element: Element, rows: Sequence[Row[Any]]) -> None:
        expected = await self.looking.expected(element, [(row.file_uid, row.path) for row in rows])
        wanted = [Wanted(one.file.uid, one.path, one.file.size_bytes, one.file.checksums.adler32) for one in expected]
        wrong = await self.looking.unlike(element, wanted, read=True)
        await self.recording.record(element, wrong, ORIGIN)
        bad = {one.path for one in wrong}
        await self._verified(element, [one for one in expected if one.path not in bad])
        await self._note(element, [row.file_uid for row in rows])

    async def _verified(self, element: Element, right: Sequence[Expected]) -> None:
        """Tell the catalogue."""
        updates = []
        for one in right:
            there = next(copy for copy in one.file.replicas if copy.storage_element == element.id)
            if one.file.checksums.adler32 and there.state == file_pb2.Replica.STATE_AVAILABLE:
                there.verify_time.FromDatetime(datetime.now(UTC))
                updates.append(catalog_pb.ReplicaUpdate(name=f"files/{one.file.uid}", set=[there]))
        await self.catalog.note_replicas(updates)

    async def _note(self, element: Element, uids: Sequence[str]) -> None:
        """Read others next, also before the catalogue's events are here."""
        ours = (replica.c.storage_element == element.id, in_values(replica.c.file_uid, uids))
        async with self.database.write() as connection:
            await connection.execute(update(replica).where(*ours).values(verify_time=datetime.now(UTC)))


def _on_disk(element: Element) -> bool:
    return element.media == storage_element_pb2.StorageElement.MEDIA_DISK
