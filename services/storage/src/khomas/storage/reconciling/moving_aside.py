"""What nobody knows, and what nobody can mend: made a replica, moved aside and back, deleted, or given up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Row

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import incident_pb2 as pb
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Digest, Problem, ProtocolFault
from khomas.storage.reconciling.findings import Finding
from khomas.storage.reconciling.looking import Looking
from khomas.storage.reconciling.replacing import Replacing
from khomas.storage.reconciling.steps import Step, again, resolved, undecided

QUARANTINE: Final = f"{PRIVATE}/quarantine"
_NOT_DARK = "It is not there any more, or the catalogue knows it now."


@dataclass(frozen=True, slots=True)
class MovingAside:
    """The repairs REGISTER, QUARANTINE, DELETE, DECLARE_LOST, and of what is aside RESTORE and DISCARD."""

    catalog: Catalog
    protocols: Protocols
    looking: Looking
    replacing: Replacing

    async def quarantine(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Move unknown files aside."""
        steps, dark = await self._still_dark(element, rows)
        return [*steps, *await self._moved(element, [row for row, _ in dark])]

    async def delete(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Delete unknown files that are still what somebody has decided about."""
        if element.read_only:
            return [undecided(row, f"{element.id} is read-only") for row in rows]
        steps, dark = await self._still_dark(element, rows)
        same = [row for row, found in dark if _same(row, found)]
        steps += [undecided(row, "It has changed since it was found.") for row, found in dark if not _same(row, found)]
        return [*steps, *await self._deleted(element, same, [row.path for row in same])]

    async def discard(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Delete what was moved aside."""
        if element.read_only:
            return [resolved(row, f"{element.id} is read-only") for row in rows]
        return await self._deleted(element, rows, [row.quarantine_path for row in rows])

    async def restore(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Move back what was moved aside; it overwrites nothing."""
        if element.read_only:
            return [resolved(row, f"{element.id} is read-only") for row in rows]
        faults = await self._renamed(element, [(row.quarantine_path, row.path) for row in rows])
        return [_back_step(row, fault) for row, fault in zip(rows, faults, strict=True)]

    async def register(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Make unknown files replicas of what the catalogue knows by their names, if they are that."""
        steps, dark = await self._still_dark(element, rows)
        told = await self.looking.digests(element, [row.path for row, _ in dark], read=True)
        updates = []
        for (row, found), digest in zip(dark, told, strict=True):
            if isinstance(digest, ProtocolFault):
                steps.append(again(row, digest.message))
            elif found.file is None or not _is(found.file, digest, element.id):
                steps.append(undecided(row, "The catalogue knows no such file by this name that wants a replica here."))
            else:
                updates.append(_registered(found.file, element.id, row.path, digest))
                steps.append(resolved(row, f"It is a replica of {found.file.name} now."))
        if updates:
            await self.catalog.update_replicas(updates, str(uuid4()))
        return steps

    async def declare_lost(self, element: Element, rows: Sequence[Row[Any]]) -> list[Step]:
        """Take replicas out of the catalogue, unless they turn out to be right; move aside what lies there."""
        steps = await self.replacing.verify(element, rows)
        kept = [step for step in steps if step.state != pb.Incident.STATE_OPEN]
        lost = [step.row for step in steps if step.state == pb.Incident.STATE_OPEN]
        if not lost:
            return kept
        moved = await self._moved(element, lost, missing_is_fine=True)
        done = [step for step in moved if step.state == pb.Incident.STATE_RESOLVED]
        updates = [catalog_pb.ReplicaUpdate(name=f"files/{step.row.file_uid}", remove=[element.id]) for step in done]
        await self.catalog.note_replicas(updates)
        given_up = [resolved(step.row, "It is declared lost.", step.quarantine_path) for step in done]
        return [*kept, *given_up, *(step for step in moved if step not in done)]

    async def _still_dark(
        self, element: Element, rows: Sequence[Row[Any]]
    ) -> tuple[list[Step], list[tuple[Row[Any], Finding]]]:
        found = {one.path: one for one in await self.looking.unknown(element, [row.path for row in rows], timedelta(0))}
        steps = [resolved(row, _NOT_DARK) for row in rows if row.path not in found]
        return steps, [(row, found[row.path]) for row in rows if row.path in found]

    async def _deleted(self, element: Element, rows: Sequence[Row[Any]], paths: Sequence[str]) -> list[Step]:
        if not rows:
            return []
        protocol = self.protocols.of(element)
        faults, left = await protocol.delete(paths), await protocol.stat(paths)
        steps = []
        for row, fault, entry in zip(rows, faults, left, strict=True):
            gone = isinstance(entry, ProtocolFault) and entry.problem is Problem.ABSENT
            message = fault.message if fault else "It is still there after its deletion."
            steps.append(resolved(row, "It is deleted.", "") if gone and not fault else again(row, message))
        return steps

    async def _moved(self, element: Element, rows: Sequence[Row[Any]], *, missing_is_fine: bool = False) -> list[Step]:
        if not rows:
            return []
        if element.read_only:
            message = f"{element.id} is read-only"
            return [resolved(row, message) if missing_is_fine else undecided(row, message) for row in rows]
        targets = [f"{QUARANTINE}/{row.uid}/{row.path.rpartition('/')[2]}" for row in rows]
        faults = await self._renamed(element, [(row.path, target) for row, target in zip(rows, targets, strict=True)])
        return [
            _moved_step(row, target, fault, missing_is_fine=missing_is_fine)
            for row, target, fault in zip(rows, targets, faults, strict=True)
        ]

    async def _renamed(self, element: Element, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Rename into folders that are made first; one that cannot be made does not make the file ABSENT."""
        protocol = self.protocols.of(element)
        wanted = [target.rpartition("/")[0] for _, target in pairs]
        folders = [folder for folder in dict.fromkeys(wanted) if folder]
        unmade = dict(zip(folders, await protocol.make_folders(folders), strict=True)) if folders else {}
        faults = await protocol.rename(pairs)
        return [fault and (unmade.get(folder) or fault) for folder, fault in zip(wanted, faults, strict=True)]


def _moved_step(row: Row[Any], target: str, fault: ProtocolFault | None, *, missing_is_fine: bool) -> Step:
    if fault is None:
        return resolved(row, "It was moved aside.", target)
    if missing_is_fine and fault.problem is Problem.ABSENT:
        return resolved(row, "Nothing lies there.")
    return again(row, f"It cannot be moved aside: {fault.message}")


def _back_step(row: Row[Any], fault: ProtocolFault | None) -> Step:
    if fault is None:
        return resolved(row, "It is back where it was.", "")
    if fault.problem is Problem.ABSENT:
        # Also when the reply to an earlier try was lost.
        return resolved(row, "It does not lie in the quarantine any more.", "")
    if fault.problem is Problem.TAKEN:
        return resolved(row, "It stays aside: something else lies where it was.")
    return again(row, f"It cannot be moved back: {fault.message}")


def _same(row: Row[Any], found: Finding) -> bool:
    return (row.found_size_bytes, row.found_modify_time) == (found.found_size_bytes, found.modify_time)


def _is(file: file_pb2.File, digest: Digest, element: str) -> bool:
    there = any(
        one.storage_element == element and one.state == file_pb2.Replica.STATE_AVAILABLE for one in file.replicas
    )
    size = file.size_bytes if digest.size_bytes is None else digest.size_bytes
    return (
        not there
        and bool(file.checksums.adler32)
        and (size, digest.value)
        == (
            file.size_bytes,
            file.checksums.adler32,
        )
    )


def _registered(file: file_pb2.File, element: str, path: str, digest: Digest) -> catalog_pb.ReplicaUpdate:
    replica = file_pb2.Replica(storage_element=element, path=path, state=file_pb2.Replica.STATE_AVAILABLE)
    replica.verify_time.FromDatetime(datetime.now(UTC))
    return catalog_pb.ReplicaUpdate(
        name=f"files/{file.uid}", set=[replica], size_bytes=file.size_bytes, adler32=digest.value
    )
