"""Looks once more, on both sides, at what seems to differ: only what is still so is a finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import incident_pb2 as pb
from khomas.api.storage.v1 import storage_element_pb2
from khomas.kit.database import Database
from khomas.storage.catalog import Catalog
from khomas.storage.checksums import Algorithm
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.known_replicas import coming
from khomas.storage.landing import read_back
from khomas.storage.protocols.interface import Digest, Entry, Kind, Problem, ProtocolFault
from khomas.storage.protocols.many import each
from khomas.storage.reconciling.findings import Finding
from khomas.storage.reconciling.sides import Wanted

_READERS: Final = 4
_READ_SECONDS: Final = 6 * 3600.0
# The storage as a whole is not well: nothing is concluded from its answers.
SICK: Final = frozenset({Problem.UNREACHABLE, Problem.CREDENTIAL, Problem.CONFIGURATION})


@dataclass(frozen=True, slots=True)
class Expected:
    """A replica as the catalogue has it now."""

    path: str
    file: file_pb2.File


class Looking:
    """Asks catalogue and storage about single files."""

    def __init__(self, database: Database, catalog: Catalog, protocols: Protocols) -> None:
        self._database = database
        self._catalog = catalog
        self._protocols = protocols

    async def expected(self, element: Element, wanted: Sequence[tuple[str, str]]) -> list[Expected]:
        """Return those (file uid, path) that the catalogue still wants to have there."""
        results = await self._catalog.files([f"files/{uid}" for uid, _ in wanted]) if wanted else []
        return [
            Expected(path, result.file)
            for (_, path), result in zip(wanted, results, strict=True)
            if not result.HasField("error") and _has(result.file, element.id, path)
        ]

    async def absent_or_resized(self, element: Element, wanted: Sequence[tuple[str, str]]) -> list[Finding]:
        """Return those that are not there, or of another size."""
        expected = await self.expected(element, wanted)
        entries = await self._protocols.of(element).stat([one.path for one in expected]) if expected else []
        found = [_compared(one, entry) for one, entry in zip(expected, entries, strict=True)]
        return [one for one in found if one is not None]

    async def unknown(self, element: Element, paths: Sequence[str], grace: timedelta) -> list[Finding]:
        """Return those that nobody knows, that are older than the grace time, and that nobody is about to announce."""
        known = await self.known(element, paths)
        rest = [path for path in paths if path not in known]
        entries = await self._protocols.of(element).stat(rest) if rest else []
        before = datetime.now(UTC) - grace
        old = [
            entry
            for entry in map(_existing, entries)
            if entry is not None and (entry.modify_time is None or entry.modify_time <= before)
        ]
        files = await self._catalog.files([f"/{one.path}" for one in old]) if old else []
        return [
            Finding(
                one.path,
                pb.Incident.KIND_DARK,
                None if result.HasField("error") else result.file,
                one.size_bytes,
                modify_time=one.modify_time,
            )
            for one, result in zip(old, files, strict=True)
        ]

    async def unlike(self, element: Element, wanted: Sequence[Wanted], *, read: bool) -> list[Finding]:
        """Return those whose content differs or cannot be read; with `read` every byte is read."""
        wanted = [one for one in wanted if one.adler32]
        told = await self.digests(element, [one.path for one in wanted], read=read)
        doubtful = [one for one, digest in zip(wanted, told, strict=True) if not _right(one, digest)]
        if not doubtful:
            return []
        # Once more, and as the catalogue has them now: a fault of the reading is no fault of the file.
        expected = await self.expected(element, [(one.file_uid, one.path) for one in doubtful])
        again = await self.digests(element, [one.path for one in expected], read=True)
        still = {one.file_uid: one for one in doubtful}
        return [
            _unlike(one, digest)
            for one, digest in zip(expected, again, strict=True)
            if not _right(still[one.file.uid], digest)
        ]

    async def digests(self, element: Element, paths: Sequence[str], *, read: bool) -> list[Digest | ProtocolFault]:
        """Return the Adler-32 of files, as the storage tells it or, with `read` or where it does not, of what was read.

        Nothing is read from tape: there it is UNSUPPORTED where the storage does not tell it.
        """
        protocol = self._protocols.of(element)
        readable = element.media != storage_element_pb2.StorageElement.MEDIA_TAPE
        # A local plug-in computes what it tells.
        told: list[Digest | ProtocolFault] = [ProtocolFault(Problem.UNSUPPORTED, "it was not read")] * len(paths)
        asked = protocol.abilities.local or not read or not readable
        if Algorithm.ADLER32 in protocol.abilities.checksums and asked and paths:
            told = await protocol.checksum(paths, Algorithm.ADLER32)
        rest = [number for number, one in enumerate(told) if readable and _unsupported(one)]

        async def reading(number: int) -> Digest:
            return await read_back(protocol, paths[number])

        done = await each(reading, rest, at_once=_READERS, seconds=_READ_SECONDS) if rest else []
        for number, one in zip(rest, done, strict=True):
            told[number] = one
        return told

    async def known(self, element: Element, paths: Sequence[str]) -> set[str]:
        """Return those paths that the catalogue knows there, or is about to be told of."""
        if not paths:
            return set()
        known = {file.replica.path for file in await self._catalog.at_paths(element.id, paths)}
        async with self._database.read() as connection:
            return known | await coming(connection, element.id, paths)


def _unsupported(one: Digest | ProtocolFault) -> bool:
    return isinstance(one, ProtocolFault) and one.problem is Problem.UNSUPPORTED


def _has(file: file_pb2.File, element: str, path: str) -> bool:
    return file.state == file_pb2.File.STATE_ACTIVE and any(
        one.storage_element == element and one.path == path for one in file.replicas
    )


def _compared(one: Expected, entry: Entry | ProtocolFault) -> Finding | None:
    if isinstance(entry, ProtocolFault):
        if entry.problem is Problem.ABSENT:
            return Finding(one.path, pb.Incident.KIND_LOST, one.file)
        if entry.problem in SICK:
            raise entry
        return Finding(one.path, pb.Incident.KIND_UNREADABLE, one.file, message=entry.message)
    if entry.kind is not Kind.FILE:
        return Finding(one.path, pb.Incident.KIND_LOST, one.file, message="there is no file of this name")
    if entry.size_bytes != one.file.size_bytes:
        return Finding(one.path, pb.Incident.KIND_SIZE, one.file, entry.size_bytes, modify_time=entry.modify_time)
    return None


def _existing(entry: Entry | ProtocolFault) -> Entry | None:
    """Return a file that is still there."""
    if isinstance(entry, ProtocolFault) and entry.problem in SICK:
        raise entry
    return entry if isinstance(entry, Entry) and entry.kind is Kind.FILE else None


def _right(one: Wanted, digest: Digest | ProtocolFault) -> bool:
    if isinstance(digest, ProtocolFault):
        if digest.problem in SICK:
            raise digest
        # On tape, where the storage tells none: nothing is known, so nothing is wrong.
        return digest.problem is Problem.UNSUPPORTED
    return digest.value == one.adler32 and digest.size_bytes in (None, one.size_bytes)


def _unlike(one: Expected, digest: Digest | ProtocolFault) -> Finding:
    if isinstance(digest, ProtocolFault):
        kind = pb.Incident.KIND_LOST if digest.problem is Problem.ABSENT else pb.Incident.KIND_UNREADABLE
        return Finding(one.path, kind, one.file, message=digest.message)
    size = one.file.size_bytes if digest.size_bytes is None else digest.size_bytes
    kind = pb.Incident.KIND_CHECKSUM if size == one.file.size_bytes else pb.Incident.KIND_SIZE
    return Finding(one.path, kind, one.file, size, digest.value)
