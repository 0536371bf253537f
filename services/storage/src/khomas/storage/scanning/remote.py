"""Walks a tree on a storage that no machine of ours mounts, in path order, and reads of its files what it has to."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.errors import DomainError
from khomas.storage import fits
from khomas.storage.checksums import Algorithm
from khomas.storage.found import Found
from khomas.storage.paths import PRIVATE, checked
from khomas.storage.protocols.blocks import whole
from khomas.storage.protocols.interface import Digest, Entry, Kind, Locality, Problem, ProtocolFault, StorageProtocol
from khomas.storage.scanning import reading

# Files that are fetched whole at once, and those of which only the headers are.
_WHOLE: Final = 2
_HEADS: Final = 8
# What is fetched for a header: most are smaller.
_PART: Final = 64 * 1024
_ON_TAPE: Final = "it is on tape; bring it to disk before, or ask for no header cards where the server tells checksums"


async def below(protocol: StorageProtocol, folder: str, after: str) -> AsyncGenerator[Found, None]:
    """Yield the files of a folder and of its folders, in the order of their paths as texts, from `after` on."""
    for path, entry in await _entries(protocol, folder):
        if not path.endswith("/"):
            if path > after:
                yield _found(entry)
        elif (path >= after or after.startswith(path)) and path != f"{PRIVATE}/":
            try:
                async with aclosing(below(protocol, entry.path, after)) as inside:
                    async for one in inside:
                        yield one
            except ProtocolFault as fault:
                yield Found(entry.path, 0, 0, f"cannot be listed: {fault.message}")


async def read(protocol: StorageProtocol, found: Sequence[Found], request: pb.ScanTreeRequest) -> list[pb.ScannedFile]:
    """Read files, some at once, and of each no more than has to be: its server may tell the checksum."""
    told = await _told(protocol, found) if request.checksums else {}
    unknown = {one.path for one in found if request.checksums and one.path not in told}
    with_cards = {one.path for one in found if request.cards and fits.looks_like_fits(one.path)}
    on_tape = await _on_tape(protocol, [one for one in found if one.path in unknown | with_cards])
    fetching, looking = asyncio.Semaphore(_WHOLE), asyncio.Semaphore(_HEADS)

    async def all_of(file: Found) -> pb.ScannedFile:
        async with fetching, _fetched(protocol, file) as path:
            return await asyncio.to_thread(reading.read, file, lambda _: path, request)

    async def one(file: Found) -> pb.ScannedFile:
        if file.path in on_tape:
            raise ProtocolFault(Problem.UNREACHABLE, _ON_TAPE)
        if file.error or file.path in unknown:
            return await all_of(file)
        answer = reading.unread(file)
        if request.checksums:
            answer.checksums.adler32 = told[file.path]
        if file.path in with_cards:
            async with looking:
                hdus = await _headers(protocol, file)
            if hdus is None:
                return await all_of(file)
            answer.cards.extend(reading.cards_of(hdus, request))
        return answer

    return await asyncio.gather(*[_safely(file, one(file)) for file in found])


async def _safely(file: Found, answer: Awaitable[pb.ScannedFile]) -> pb.ScannedFile:
    """Return what is known of a file, or why it cannot be read."""
    try:
        return await answer
    except ProtocolFault as fault:
        return pb.ScannedFile(path=file.path, error=f"cannot be read: {fault.message}")
    except fits.NotFits as error:
        return pb.ScannedFile(path=file.path, error=f"is no FITS file: {error}")


async def _told(protocol: StorageProtocol, found: Sequence[Found]) -> dict[str, str]:
    """Return the checksums that the server tells, by path."""
    if Algorithm.ADLER32 not in protocol.abilities.checksums:
        return {}
    asked = [one for one in found if not one.error]
    answers = await protocol.checksum([one.path for one in asked], Algorithm.ADLER32)
    return {
        one.path: answer.value
        for one, answer in zip(asked, answers, strict=True)
        if isinstance(answer, Digest) and answer.size_bytes in (None, one.size_bytes)
    }


async def _on_tape(protocol: StorageProtocol, found: Sequence[Found]) -> set[str]:
    """Return of which files the bytes are not on disk: to read them would have them all recalled."""
    if protocol.tape is None:
        return set()
    paths = [one.path for one in found if not one.error]
    places = await protocol.tape.locality(paths)
    return {path for path, place in zip(paths, places, strict=True) if place is Locality.TAPE}


async def _headers(protocol: StorageProtocol, file: Found) -> list[fits.Hdu] | None:
    """Fetch the parts of a file in which its headers are; None if it is compressed, whatever its name says."""
    parts, hdus, position = _Parts(), list[fits.Hdu](), 0
    skip = fits.skip_by_seek(cast(BinaryIO, parts), file.size_bytes)
    while True:
        parts.seek(position)
        try:
            hdu = fits.next_hdu(cast(BinaryIO, parts), skip, len(hdus))
        except _Missing as missing:
            async with aclosing(protocol.get(file.path, missing.number * _PART, _PART)) as blocks:
                parts.known[missing.number] = await whole(blocks)
            if parts.known[0].startswith(fits.GZIP):
                return None
            continue
        if hdu is None:
            return hdus
        hdus.append(hdu)
        position = parts.tell()


class _Missing(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Parts:
    """A file of which some parts are here, by their numbers; to read others raises _Missing."""

    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> None:
        self._position = position + (self._position if whence == os.SEEK_CUR else 0)

    def read(self, size_bytes: int) -> bytes:
        found = b""
        while len(found) < size_bytes:
            number, start = divmod(self._position, _PART)
            if number not in self.known:
                raise _Missing(number)
            piece = self.known[number][start : start + size_bytes - len(found)]
            if not piece:
                break
            found += piece
            self._position += len(piece)
        return found


@asynccontextmanager
async def _fetched(protocol: StorageProtocol, file: Found) -> AsyncIterator[Path]:
    """Give a copy of a file on this machine for a moment."""
    with tempfile.NamedTemporaryFile(prefix="khomas-scan-") as copy:
        if not file.error:
            async with aclosing(protocol.get(file.path)) as blocks:
                async for block in blocks:
                    await asyncio.to_thread(copy.write, block)
            await asyncio.to_thread(copy.flush)
        yield Path(copy.name)


async def _entries(protocol: StorageProtocol, folder: str) -> list[tuple[str, Entry]]:
    """Return what is in a folder, folders with a slash: so that sorting gives the order of whole paths."""
    async with aclosing(protocol.entries(folder)) as pages:
        entries = [entry async for page in pages for entry in page]
    pairs = [(f"{entry.path}/" if entry.kind is Kind.FOLDER else entry.path, entry) for entry in entries]
    return sorted(pairs, key=lambda pair: pair[0])


def _found(entry: Entry) -> Found:
    try:
        checked(entry.path)
    except DomainError as error:
        return Found(entry.path.encode(errors="replace").decode(), 0, 0, error.message)
    if entry.kind is not Kind.FILE:
        return Found(entry.path, 0, 0, "not a regular file")
    return Found(entry.path, entry.size_bytes, entry.modify_time.timestamp() if entry.modify_time else 0)
