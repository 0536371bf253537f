"""Copies that got their names from transfers which failed or were cancelled after that: nobody knows them.

A process that dies between naming a copy and telling the catalogue leaves its path noted. The next attempt looks
there; where there is none, because the file was deleted, the transfer taken back or its time over, this does.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from sqlalchemy import Row, select, update

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.kit.database import Database, rows_table
from khomas.kit.errors import DomainError
from khomas.kit.leases import FREE, claim, held, held_table, lock
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements, Protocols
from khomas.storage.protocols.interface import Digest, Entry, Problem, ProtocolFault
from khomas.storage.reconciling.looking import Looking
from khomas.storage.tables import LEFT, transfer

log = logging.getLogger(__name__)

_BATCH: Final = 200
_PAUSE: Final = timedelta(minutes=5)


class Leftovers:
    """Removes them; what does not have the size and the checksum of the file is somebody else's, and stays."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        looking: Looking,
        elements: Elements,
        protocols: Protocols,
        *,
        owner: str,
        lease: timedelta,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._looking = looking
        self._elements = elements
        self._protocols = protocols
        self._owner = owner
        self._lease = lease

    async def work(self) -> None:
        """Look after all that ended a while ago: whoever was at work on it has stopped by then."""
        while rows := await self._claim():
            again = await self._removed(rows)
            await self._settle(rows, again)

    async def _claim(self) -> Sequence[Row[Any]]:
        now = datetime.now(UTC)
        ended = now - self._lease
        due = select(transfer.c.uid).where(LEFT, transfer.c.end_time <= ended, transfer.c.next_attempt_time <= now)
        async with self._database.read() as connection:
            if (await connection.execute(due.limit(1))).first() is None:
                return []
        async with self._database.write() as connection:
            first = due.order_by(transfer.c.end_time).limit(_BATCH)
            return await claim(connection, transfer, first, owner=self._owner, now=now, until=now + 10 * self._lease)

    async def _removed(self, rows: Sequence[Row[Any]]) -> set[str]:
        """Remove what is ours and nobody's; return which transfers are to be looked at again."""
        elements = await self._elements.all()
        again: set[str] = set()
        for name in {row.destination for row in rows} & elements.keys():
            some = [row for row in rows if row.destination == name]
            try:
                again |= await self._removed_from(elements[name], some)
            except (DomainError, ProtocolFault, grpc.aio.AioRpcError) as error:
                log.info("leftovers.postponed", extra={"storage_element": name, "error": str(error)})
                again |= {row.uid for row in some}
        return again

    async def _removed_from(self, element: Element, rows: Sequence[Row[Any]]) -> set[str]:
        if element.read_only:
            return set()
        paths = [row.path for row in rows]
        told = await self._looking.digests(element, paths, read=False)
        # Not every storage tells the size with the checksum.
        entries = await self._protocols.of(element).stat(paths)
        files = await self._catalog.files([f"files/{row.file_uid}" for row in rows])
        same = [row for row, one, entry, file in zip(rows, told, entries, files, strict=True) if _is(one, entry, file)]
        # Whoever wants or has the path is asked after looking there: what comes later finds the name taken.
        known = await self._looking.known(element, [row.path for row in same])
        again = await self._deleted(element, [row for row in same if row.path not in known])
        return again | {row.uid for row, one in zip(rows, told, strict=True) if _passes(one)}

    async def _deleted(self, element: Element, rows: Sequence[Row[Any]]) -> set[str]:
        faults = await self._protocols.of(element).delete([row.path for row in rows]) if rows else []
        for row, fault in zip(rows, faults, strict=True):
            told = {"storage_element": element.id, "path": row.path, "error": fault.message if fault else ""}
            log.info("leftovers.removed" if fault is None else "leftovers.stays", extra=told)
        return {row.uid for row, fault in zip(rows, faults, strict=True) if fault is not None}

    async def _settle(self, rows: Sequence[Row[Any]], again: set[str]) -> None:
        later = datetime.now(UTC) + _PAUSE
        types = {"uid": transfer.c.uid.type, "path": transfer.c.path.type}
        async with self._database.write() as connection:
            await lock(connection, transfer, [row.uid for row in rows])
            leases = held_table(connection, transfer, {row.uid: row.lease_epoch for row in rows})
            new = rows_table(connection, types, [(row.uid, row.path if row.uid in again else "") for row in rows])
            statement = update(transfer).where(held(transfer, leases), transfer.c.uid == new.c.uid)
            await connection.execute(statement.values(path=new.c.path, next_attempt_time=later, **FREE))


def _is(told: Digest | ProtocolFault, entry: Entry | ProtocolFault, result: catalog_pb.FileResult) -> bool:
    """Tell whether the bytes of a file lie there; of one that the catalogue has forgotten nobody knows."""
    if isinstance(told, ProtocolFault) or isinstance(entry, ProtocolFault) or result.HasField("error"):
        return False
    return (entry.size_bytes, told.value) == (result.file.size_bytes, result.file.checksums.adler32)


def _passes(told: Digest | ProtocolFault) -> bool:
    """Tell whether the storage may say more another time."""
    return isinstance(told, ProtocolFault) and told.problem not in (Problem.ABSENT, Problem.UNSUPPORTED)
