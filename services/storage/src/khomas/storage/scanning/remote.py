"""Walks a tree on a storage that no machine of ours mounts, in path order, and fetches its files to read them."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.errors import DomainError
from khomas.storage.found import Found
from khomas.storage.paths import PRIVATE, checked
from khomas.storage.protocols.interface import Entry, Kind, ProtocolFault, StorageProtocol

_READERS: Final = 2
Reading = Callable[[Found, Callable[[str], Path], pb.ScanTreeRequest], pb.ScannedFile]


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


async def read(
    protocol: StorageProtocol, found: list[Found], request: pb.ScanTreeRequest, scanned: Reading
) -> list[pb.ScannedFile]:
    """Fetch files one after the other, some at once, and read them."""
    places = asyncio.Semaphore(_READERS)

    async def one(file: Found) -> pb.ScannedFile:
        async with places, _fetched(protocol, file) as path:
            return await asyncio.to_thread(scanned, file, lambda _: path, request)

    async def safely(file: Found) -> pb.ScannedFile:
        try:
            return await one(file)
        except ProtocolFault as fault:
            return pb.ScannedFile(path=file.path, error=f"cannot be read: {fault.message}")

    return await asyncio.gather(*map(safely, found))


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
