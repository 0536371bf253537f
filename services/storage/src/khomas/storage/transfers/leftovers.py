"""Copies that got their names from transfers which failed or were cancelled after that: nobody knows them.

A process that dies between naming a copy and telling the catalogue leaves its path noted. The next attempt looks
there; where there is none, because the file was deleted, the transfer taken back or its time over, this does.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from sqlalchemy import Row, select, update

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.kit.database import Database, in_values, rows_table
from khomas.kit.errors import DomainError
from khomas.kit.leases import FREE, claim, held, held_table
from khomas.storage.catalog import Catalog
from khomas.storage.checksums import Algorithm
from khomas.storage.elements.elements import Element, Elements, Protocols
from khomas.storage.landing import Wanted, digest
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.tables import LEFT, transfer
from khomas.storage.transfers.transfers import ACTIVE

log = logging.getLogger(__name__)

_BATCH: Final = 200
_AT_ONCE: Final = 8
_PAUSE: Final = timedelta(minutes=5)
_ANY_VALUE = {Algorithm.ADLER32: ""}


class Leftovers:
    """Removes them; what does not have the size and the checksum of the file is somebody else's, and stays."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        *,
        owner: str,
        lease: timedelta,
    ) -> None:
        self._database = database
        self._catalog = catalog
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
        there = [row for row in rows if row.destination in elements and not elements[row.destination].read_only]
        limit = asyncio.Semaphore(_AT_ONCE)

        async def seen(row: Row[Any]) -> Wanted | None:
            async with limit:
                return await self._seen(elements[row.destination], row.path)

        again: set[str] = set()
        copies: list[tuple[Row[Any], Wanted]] = []
        for row, found in zip(there, await asyncio.gather(*map(seen, there), return_exceptions=True), strict=True):
            if isinstance(found, (DomainError, ProtocolFault)):
                again.add(row.uid)
            elif isinstance(found, BaseException):
                raise found
            elif found is not None:
                copies.append((row, found))
        # Whoever wants or has the path is asked after looking there: what comes later finds the name taken.
        try:
            nobodys = await self._nobodys(copies)
        except (DomainError, grpc.aio.AioRpcError) as error:
            log.info("leftovers.postponed", extra={"error": str(error)})
            return again | {row.uid for row, _ in copies}
        for name in {row.destination for row in nobodys}:
            again |= await self._deleted(elements[name], [row for row in nobodys if row.destination == name])
        return again

    async def _seen(self, element: Element, path: str) -> Wanted | None:
        """Return what lies at a path, None for nothing; raises where nobody can tell now."""
        try:
            found = await digest(self._protocols.of(element), path, _ANY_VALUE)
        except ProtocolFault as fault:
            if fault.problem is Problem.ABSENT:
                return None
            raise
        return None if found.size_bytes is None else Wanted(found.size_bytes, found.value)

    async def _nobodys(self, copies: Sequence[tuple[Row[Any], Wanted]]) -> list[Row[Any]]:
        """Return those with the bytes of their file whose place neither a replica nor a transfer under way has."""
        if not copies:
            return []
        files = [row.file for row, _ in copies]
        query = select(transfer.c.destination, transfer.c.path).where(
            in_values(transfer.c.file, files), transfer.c.state.in_(ACTIVE)
        )
        async with self._database.read() as connection:
            taken = {(one.destination, one.path) for one in (await connection.execute(query)).all()}
        # By uid and by name: another file may have the name by now.
        named = await self._catalog.files([f"files/{row.file_uid}" for row, _ in copies] + files)
        taken |= {(one.storage_element, one.path) for result in named for one in result.file.replicas}
        return [
            row
            for (row, found), result in zip(copies, named, strict=False)
            if found == _of(result) and (row.destination, row.path) not in taken
        ]

    async def _deleted(self, element: Element, rows: Sequence[Row[Any]]) -> set[str]:
        faults = await self._protocols.of(element).delete([row.path for row in rows])
        for row, fault in zip(rows, faults, strict=True):
            told = {"storage_element": element.id, "path": row.path, "error": fault.message if fault else ""}
            log.info("leftovers.removed" if fault is None else "leftovers.stays", extra=told)
        return {row.uid for row, fault in zip(rows, faults, strict=True) if fault is not None}

    async def _settle(self, rows: Sequence[Row[Any]], again: set[str]) -> None:
        later = datetime.now(UTC) + _PAUSE
        types = {"uid": transfer.c.uid.type, "path": transfer.c.path.type}
        async with self._database.write() as connection:
            leases = held_table(connection, transfer, {row.uid: row.lease_epoch for row in rows})
            new = rows_table(connection, types, [(row.uid, row.path if row.uid in again else "") for row in rows])
            statement = update(transfer).where(held(transfer, leases), transfer.c.uid == new.c.uid)
            await connection.execute(statement.values(path=new.c.path, next_attempt_time=later, **FREE))


def _of(result: catalog_pb.FileResult) -> Wanted | None:
    """Return what a file has, or had; None when the catalogue has forgotten it."""
    return None if result.HasField("error") else Wanted(result.file.size_bytes, result.file.checksums.adler32)
