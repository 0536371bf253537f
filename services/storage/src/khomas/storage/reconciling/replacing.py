"""Replicas that are lost or damaged: read again, then brought from a good copy; what is bad is deleted only after."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Row, select

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import incident_pb2, storage_service_pb2, transfer_pb2
from khomas.kit.auth.principal import Kind, Principal
from khomas.kit.boundary.call import Call, enter_call
from khomas.kit.database import Database, in_values
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.protocols.interface import Digest, ProtocolFault
from khomas.storage.reconciling.findings import good_copies, suspect
from khomas.storage.reconciling.looking import SICK, Expected, Looking
from khomas.storage.reconciling.steps import Step, afresh, again, resolved, undecided, waiting
from khomas.storage.tables import transfer
from khomas.storage.transfers.transfers import PREFIX, Transfers

_GONE = "The catalogue does not have it there any more."
_RIGHT = "It was read, and is right."


@dataclass(frozen=True, slots=True)
class Replacing:
    """The repairs VERIFY and COPY."""

    database: Database
    catalog: Catalog
    protocols: Protocols
    looking: Looking
    transfers: Transfers

    async def verify(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Read replicas again; those that are right are AVAILABLE again."""
        steps, bad = await self._verified(element, rows)
        return [*steps, *(undecided(row, message) for row, _, message in bad)]

    async def copy(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Bring good copies where replicas are not right."""
        begun = [row for row in rows if row.transfer]
        steps, bad = await self._verified(element, [row for row in rows if not row.transfer])
        wanted = [(row, one) for row, one, _ in bad if good_copies(one.file, element.id)]
        hopeless = [
            undecided(row, f"There is no good copy elsewhere: {message}")
            for row, one, message in bad
            if not good_copies(one.file, element.id)
        ]
        if not element.takes_files:
            return [*steps, *hopeless, *(undecided(row, f"{element.id} takes no files") for row, _ in wanted)]
        return [*steps, *hopeless, *await self._begun(element, wanted), *await self._ended(element, begun)]

    async def _verified(
        self, element: Element, rows: Sequence[Row[Any]]
    ) -> tuple[list[Step], list[tuple[Row[Any], Expected, str]]]:
        """Return steps for what needs nothing more, and the rest with what is wrong with it."""
        expected = await self.looking.expected(element, [(row.file_uid, row.path) for row in rows])
        there = {(one.file.uid, one.path): one for one in expected}
        pairs = [(row, there[row.file_uid, row.path]) for row in rows if (row.file_uid, row.path) in there]
        steps = [resolved(row, _GONE) for row in rows if (row.file_uid, row.path) not in there]
        told = await self.looking.digests(element, [one.path for _, one in pairs], read=True)
        right, bad = [], []
        for (row, one), digest in zip(pairs, told, strict=True):
            message = _wrong(one.file, digest)
            if isinstance(digest, ProtocolFault) and digest.problem in SICK:
                steps.append(again(row, message))
            elif message:
                bad.append((row, one, message))
            else:
                right.append(one)
                steps.append(resolved(row, _RIGHT))
        await self._available(element, right)
        return steps, bad

    async def _available(self, element: Element, right: Sequence[Expected]) -> None:
        updates = []
        for one in right:
            replica = file_pb2.Replica(
                storage_element=element.id, path=one.path, state=file_pb2.Replica.STATE_AVAILABLE
            )
            replica.verify_time.FromDatetime(datetime.now(UTC))
            updates.append(catalog_pb.ReplicaUpdate(name=f"files/{one.file.uid}", set=[replica]))
        await self.catalog.note_replicas(updates)

    async def _begun(self, element: Element, wanted: Sequence[tuple[Row[Any], Expected]]) -> list[Step]:
        if not wanted:
            return []
        await self._suspect(element, [one for _, one in wanted])
        request = storage_service_pb2.BatchCreateTransfersRequest(
            transfers=[
                transfer_pb2.Transfer(file=one.file.name, destination=element.id, origin=row.uid) for row, one in wanted
            ],
            request_id=str(uuid4()),
        )
        # A task of its own: who we are there is nobody's affair here.
        answer = await asyncio.create_task(self._asked(request))
        return [
            again(row, result.error.message)
            if result.HasField("error")
            else waiting(row, "A good copy is on its way.", result.transfer.name)
            for (row, _), result in zip(wanted, answer.results, strict=True)
        ]

    async def _suspect(self, element: Element, bad: Sequence[Expected]) -> None:
        """See to it that the catalogue knows: what it takes for good is not brought again."""
        updates = [
            catalog_pb.ReplicaUpdate(name=f"files/{one.file.uid}", set=[replica])
            for one in bad
            if (replica := suspect(one.file, element.id)) is not None
        ]
        await self.catalog.note_replicas(updates)

    async def _asked(
        self, request: storage_service_pb2.BatchCreateTransfersRequest
    ) -> storage_service_pb2.BatchCreateTransfersResponse:
        us = Principal("", "", "service:storage", Kind.SERVICE, (), (), (), "", datetime.now(UTC))
        enter_call(Call("repair", us, "", None))
        return await self.transfers.create(request)

    async def _ended(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Look how far the transfers are; where the new copy is there, delete the bad one."""
        uids = [row.transfer.removeprefix(PREFIX) for row in rows]
        query = select(transfer.c.uid, transfer.c.state, transfer.c.message).where(in_values(transfer.c.uid, uids))
        async with self.database.read() as connection:
            found = {one.uid: one for one in (await connection.execute(query)).all()} if uids else {}
        states = {row: found.get(uid) for row, uid in zip(rows, uids, strict=True)}
        done = [row for row, one in states.items() if one and one.state == transfer_pb2.Transfer.STATE_SUCCEEDED]
        failed = (transfer_pb2.Transfer.STATE_FAILED, transfer_pb2.Transfer.STATE_CANCELLED)
        steps = [
            undecided(row, f"No good copy came: {one.message if one else 'the transfer is gone'}")
            for row, one in states.items()
            if one is None or one.state in failed
        ]
        settled = {id(step.row) for step in steps} | {id(row) for row in done}
        steps += [waiting(row, "A good copy is on its way.") for row in rows if id(row) not in settled]
        return [*steps, *await self._cleaned(element, done)]

    async def _cleaned(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Delete what is bad, if the catalogue has a good replica there now and nothing at the old path."""
        if not rows:
            return []
        results = await self.catalog.files([f"files/{row.file_uid}" for row in rows])
        files = {result.file.uid: result.file for result in results if not result.HasField("error")}
        replaced = [row for row in rows if _good(files.get(row.file_uid), element.id)]
        good = {id(row) for row in replaced}
        steps = [afresh(row, "The new copy is not in the catalogue.") for row in rows if id(row) not in good]
        known = await self.looking.known(element, [row.path for row in replaced])
        # Where nothing was, nothing of ours can be by now.
        bad = [row for row in replaced if row.path not in known and row.kind != incident_pb2.Incident.KIND_LOST]
        faults = await self.protocols.of(element).delete([row.path for row in bad]) if bad else []
        steps += [
            again(row, f"The bad copy cannot be deleted: {fault.message}") if fault else resolved(row, _replaced(row))
            for row, fault in zip(bad, faults, strict=True)
        ]
        return [*steps, *(resolved(row, _replaced(row)) for row in replaced if row not in bad)]


def _replaced(row: Row[Any]) -> str:
    return f"A good copy came by {row.transfer}."


def _good(file: file_pb2.File | None, element: str) -> bool:
    if file is None or file.state != file_pb2.File.STATE_ACTIVE:
        # Deleted meanwhile: nothing to keep it for.
        return file is None or file.state != file_pb2.File.STATE_DELETING
    available = file_pb2.Replica.STATE_AVAILABLE
    return any(one.storage_element == element and one.state == available for one in file.replicas)


def _wrong(file: file_pb2.File, digest: Digest | ProtocolFault) -> str:
    """Return what is wrong with it, if anything is."""
    if isinstance(digest, ProtocolFault):
        return digest.message
    if digest.size_bytes not in (None, file.size_bytes):
        return f"It has {digest.size_bytes} bytes, not {file.size_bytes}."
    if file.checksums.adler32 and digest.value != file.checksums.adler32:
        return f"It has adler32 {digest.value}, not {file.checksums.adler32}."
    return ""
