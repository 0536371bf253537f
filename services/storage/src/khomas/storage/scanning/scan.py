"""Walks a tree that lies on a StorageElement, in path order, and reads its files once."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Final

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.errors import DomainError
from khomas.storage.elements.elements import Element, Elements, Protocols, known
from khomas.storage.errors import PathNotFound, StorageElementUnreachable
from khomas.storage.found import Found
from khomas.storage.paths import PRIVATE, checked
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.scanning import reading
from khomas.storage.scanning import remote as remote_scan

_BATCH_FILES: Final = 200
_BATCH_BYTES: Final = 512 * 1024 * 1024
# One reads from the disk while another one computes.
_READERS: Final = 2


class Scans:
    """Answers ScanTree."""

    def __init__(self, elements: Elements, protocols: Protocols) -> None:
        self._elements = elements
        self._protocols = protocols

    async def scan(self, request: pb.ScanTreeRequest) -> AsyncIterator[pb.ScanTreeResponse]:
        """Stream what lies below a path; the walk and the reading run in threads."""
        element = known(await self._elements.all(), request.storage_element)
        top = checked(request.path) if request.path else ""
        answers = self._mounted if self._protocols.is_local(element) else self._elsewhere
        async with aclosing(answers(element, top, request)) as files:
            async for some in files:
                yield pb.ScanTreeResponse(files=some)

    async def _mounted(
        self, element: Element, top: str, request: pb.ScanTreeRequest
    ) -> AsyncGenerator[Sequence[pb.ScannedFile], None]:
        local = self._local(element)
        if not await asyncio.to_thread(local(top).is_dir):
            raise PathNotFound(storage_element=element.id, path=request.path or "/")
        walk = Walk(local, follow=element.read_only)
        found = _wanted(walk.below(top, request.after_path), request, top)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="storage-scan") as readers:
            batches = _batches(found, read=_reads(request))
            while batch := await asyncio.to_thread(next, batches, None):
                loop = asyncio.get_running_loop()
                reads = [loop.run_in_executor(readers, reading.read, one, local, request) for one in batch]
                yield await asyncio.gather(*reads)

    async def _elsewhere(
        self, element: Element, top: str, request: pb.ScanTreeRequest
    ) -> AsyncGenerator[Sequence[pb.ScannedFile], None]:
        protocol, sent = self._protocols.of(element), 0
        try:
            async with aclosing(remote_scan.below(protocol, top, request.after_path)) as found:
                batch: list[Found] = []
                async for one in found:
                    if not _matches(one, request, top):
                        continue
                    batch.append(one)
                    sent += 1
                    size = sum(other.size_bytes for other in batch) if _reads(request) else 0
                    if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES or sent == request.limit:
                        yield await self._fetched(protocol, batch, request)
                        batch = []
                    if sent == request.limit:
                        return
            if batch:
                yield await self._fetched(protocol, batch, request)
        except ProtocolFault as fault:
            if fault.problem is Problem.ABSENT:
                raise PathNotFound(storage_element=element.id, path=request.path or "/") from fault
            raise StorageElementUnreachable(storage_element=element.id, message=fault.message) from fault

    async def _fetched(
        self, protocol: StorageProtocol, batch: list[Found], request: pb.ScanTreeRequest
    ) -> Sequence[pb.ScannedFile]:
        if _reads(request):
            return await remote_scan.read(protocol, batch, request)
        return [reading.read(one, Path, request) for one in batch]

    def _local(self, element: Element) -> Callable[[str], Path]:
        return lambda path: self._protocols.local(element, path)


class Walk:
    """Visits files in the order of their paths as texts."""

    def __init__(self, local: Callable[[str], Path], *, follow: bool) -> None:
        self._local = local
        # Links to folders are followed in trees that were adopted as they are.
        self._follow = follow

    def below(self, folder: str, after: str) -> Iterator[Found]:
        """Yield the files of a folder and of its folders, from `after` on."""
        yield from self._below(folder, after, frozenset({_identity(self._local(folder).stat())}))

    def _below(self, folder: str, after: str, inside: frozenset[tuple[int, int]]) -> Iterator[Found]:
        """Do it with the folders above known, so that no link leads round and round."""
        prefix = f"{folder}/" if folder else ""
        for name, entry in self._entries(folder):
            path = prefix + name
            if name.endswith("/"):
                if (path < after and not after.startswith(path)) or path == f"{PRIVATE}/":
                    continue
                yield from self._folder(path[:-1], entry, after, inside)
            elif path > after:
                yield self._file(path, entry)

    def _entries(self, folder: str) -> list[tuple[str, "os.DirEntry[str]"]]:
        """Return what is in a folder, folders with a slash: so that sorting gives the order of whole paths."""
        with os.scandir(self._local(folder)) as entries:
            return sorted(((f"{entry.name}/" if self._is_folder(entry) else entry.name), entry) for entry in entries)

    def _is_folder(self, entry: "os.DirEntry[str]") -> bool:
        try:
            return entry.is_dir(follow_symlinks=self._follow)
        except OSError:
            return False

    def _folder(
        self, path: str, entry: "os.DirEntry[str]", after: str, inside: frozenset[tuple[int, int]]
    ) -> Iterator[Found]:
        try:
            identity = _identity(entry.stat())
            if identity in inside:
                yield Found(path, 0, 0, "a link to a folder above it")
                return
            yield from self._below(path, after, inside | {identity})
        except OSError as error:
            yield Found(path, 0, 0, f"cannot be listed: {error.strerror}")

    def _file(self, path: str, entry: "os.DirEntry[str]") -> Found:
        try:
            checked(path)
            if entry.is_symlink():
                self._local(path)
            status = entry.stat()
        except (OSError, DomainError) as error:
            reason = error.message if isinstance(error, DomainError) else str(error.strerror)
            return Found(_printable(path), 0, 0, reason)
        if not stat.S_ISREG(status.st_mode):
            return Found(path, 0, 0, "not a regular file")
        return Found(path, status.st_size, status.st_mtime)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _reads(request: pb.ScanTreeRequest) -> bool:
    return bool(request.checksums or request.cards)


def _matches(one: Found, request: pb.ScanTreeRequest, top: str) -> bool:
    start = len(top) + 1 if top else 0
    return not request.include or any(fnmatchcase(one.path[start:], pattern) for pattern in request.include)


def _wanted(found: Iterator[Found], request: pb.ScanTreeRequest, top: str) -> Iterator[Found]:
    return islice((one for one in found if _matches(one, request, top)), request.limit or None)


def _batches(found: Iterator[Found], *, read: bool) -> Iterator[list[Found]]:
    """Cut into batches that are answered soon, also where files are large and have to be read."""
    batch: list[Found] = []
    size = 0
    for one in found:
        batch.append(one)
        size += one.size_bytes if read else 0
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="replace")
