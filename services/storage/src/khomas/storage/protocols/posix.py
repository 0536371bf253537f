"""A directory tree: a local disk or a mounted file system."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from khomas.storage.checksums import BLOCK, Algorithm, new_hash
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.blocks import whole
from khomas.storage.protocols.interface import (
    Abilities,
    Access,
    Digest,
    Entry,
    Kind,
    Plugin,
    Problem,
    ProtocolFault,
    Room,
    Tape,
    ThirdParty,
)

T = TypeVar("T")
Item = TypeVar("Item")

# Calls that wait for the disk at once: a network file system answers many sooner than one after the other.
_THREADS: Final = 8
_PAGE: Final = 1000
# Files up to this size are read and written in one step.
_SMALL: Final = 1024 * 1024
_PROBLEMS = {
    errno.ENOENT: Problem.ABSENT,
    errno.ENOTDIR: Problem.ABSENT,
    errno.EEXIST: Problem.TAKEN,
    errno.EISDIR: Problem.TAKEN,
    errno.EACCES: Problem.REFUSED,
    errno.EPERM: Problem.REFUSED,
    errno.EROFS: Problem.REFUSED,
    errno.ELOOP: Problem.REFUSED,
    errno.ENAMETOOLONG: Problem.REFUSED,
    errno.ENOSPC: Problem.FULL,
    errno.EDQUOT: Problem.FULL,
    errno.ESTALE: Problem.UNREACHABLE,
    # A mounted file system whose server, or helper, is gone.
    errno.ENOTCONN: Problem.UNREACHABLE,
    errno.EHOSTDOWN: Problem.UNREACHABLE,
    errno.EKEYEXPIRED: Problem.CREDENTIAL,
}


def fault(error: OSError) -> ProtocolFault:
    """Translate an error of the operating system."""
    return ProtocolFault(_PROBLEMS.get(error.errno or 0, Problem.PASSING), f"{error.strerror}: {error.filename}")


def flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PosixSource:
    """A local file open for reading. Blocks."""

    def __init__(self, path: Path, start: int = 0) -> None:
        # A pipe in the tree must not block the worker for ever.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._descriptor)
            raise ProtocolFault(Problem.REFUSED, f"not a regular file: {path}")
        self.size_bytes = found.st_size
        self.closed = False
        self._position = start

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the file goes; 0 at the end."""
        filled = 0
        while filled < len(buffer):
            count = os.preadv(self._descriptor, [buffer[filled:]], self._position)
            if not count:
                break
            filled += count
            self._position += count
        return filled

    def read(self, size_bytes: int) -> bytes:
        """Return so many bytes, or as many as there are."""
        parts = []
        while size_bytes and (part := os.pread(self._descriptor, size_bytes, self._position)):
            parts.append(part)
            size_bytes -= len(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        os.close(self._descriptor)


def _begun(path: Path, start: int, size_bytes: int | None) -> tuple[PosixSource, bytes]:
    """Open a file and read its first block; a small one is closed again then. Every way to the disk costs."""
    source = PosixSource(path, start)
    try:
        # One more than there is shows the end of a small file at once.
        wanted = min(max(0, source.size_bytes - start) + 1 if size_bytes is None else size_bytes, BLOCK)
        block = source.read(wanted)
    except BaseException:
        source.close()
        raise
    if len(block) < wanted or wanted == size_bytes:
        source.close()
    return source, block


class _Sink:
    """A local file being written. Blocks."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        space = os.fstatvfs(self._descriptor)
        if (free := space.f_bavail * space.f_frsize) < size_bytes:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise ProtocolFault(Problem.FULL, f"{free} bytes are free, {size_bytes} are needed")

    def write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class PosixProtocol:
    """A StorageElement that is a directory of this machine."""

    abilities = Abilities(local=True, checksums=tuple(Algorithm), exclusive_rename=True)
    third_party: ThirdParty | None = None
    tape: Tape | None = None

    def __init__(self, root: Path, *, follow_out: bool = False, durable: bool = False) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._follow_out = follow_out
        self._durable = durable
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage-posix")

    async def space(self) -> Room:
        """Ask the file system."""
        return await self._run(self._room)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders."""
        return await self._each(lambda path: _entry(path, self.local_path(path).stat()), paths)

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder."""
        # Kept where it is closed also when nobody waits any more for its opening.
        opened: list[Any] = []
        prefix = f"{folder}/" if folder else ""
        try:
            await self._run(lambda: opened.append(os.scandir(self.local_path(folder))))
            while page := await self._run(lambda: [_listed(prefix, one) for one in islice(opened[0], _PAGE)]):
                yield page
        finally:
            for found in opened:
                found.close()

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Read files."""
        return await self._each(lambda path: _digest(self.local_path(path), algorithm), paths)

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Unlink files, and the folders that are empty then."""
        return await self._each(self._remove, paths)

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Make folders."""
        return await self._each(self._make_folder, paths)

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Link to the new names: that is atomic and overwrites nothing."""
        return await self._each(self._rename, pairs)

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read block by block."""
        source, block = await self._run(lambda: _begun(self.local_path(path), start, size_bytes))
        try:
            while block:
                yield memoryview(block)
                size_bytes = None if size_bytes is None else size_bytes - len(block)
                if source.closed or size_bytes == 0:
                    return
                block = await self._run(partial(source.read, BLOCK if size_bytes is None else min(size_bytes, BLOCK)))
        finally:
            if not source.closed:
                await self._run(source.close)

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write what comes; a small file in one step."""
        if size_bytes <= _SMALL:
            content = await whole(blocks)
            await self._run(lambda: self._written(path, content, size_bytes))
            return
        sink = await self._run(lambda: _Sink(self.local_path(path), size_bytes))
        try:
            async for block in blocks:
                await self._run(partial(sink.write, block))
            if self._durable:
                await self._run(sink.flush)
        finally:
            await self._run(sink.close)

    def _written(self, path: str, content: bytes, size_bytes: int) -> None:
        sink = _Sink(self.local_path(path), size_bytes)
        try:
            sink.write(memoryview(content))
            if self._durable:
                sink.flush()
        finally:
            sink.close()

    def local_path(self, path: str) -> Path:
        """Return the path below the root; links that lead out of it are followed in read-only trees only."""
        target = self.root / path
        if not self._follow_out and not target.resolve().is_relative_to(self._resolved):
            raise ProtocolFault(Problem.REFUSED, f"{path} leads out of the root of the storage")
        return target

    async def close(self) -> None:
        """Let the threads end."""
        await asyncio.to_thread(self._threads.shutdown)

    def _room(self) -> Room:
        if not self.root.is_dir():
            raise _unreachable(self.root)
        space = os.statvfs(self.root)
        return Room(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)

    def _remove(self, path: str) -> None:
        target = self.local_path(path)
        target.unlink(missing_ok=True)
        if os.path.lexists(target):
            raise ProtocolFault(Problem.PASSING, f"{path} is still there after its deletion")
        if not path.startswith(f"{PRIVATE}/"):
            # Others are about to put something into ours.
            self._remove_empty(target.parent)

    def _remove_empty(self, folder: Path) -> None:
        """Remove folders that hold nothing any more, up to the root."""
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _make_folder(self, path: str) -> None:
        try:
            self.local_path(path).mkdir(parents=True, exist_ok=True)
        except NotADirectoryError as error:
            raise ProtocolFault(Problem.TAKEN, f"a file stands where {path} needs a folder") from error

    def _rename(self, pair: tuple[str, str]) -> None:
        source, target = map(self.local_path, pair)
        # A link is a name of a file that exists already, so nobody ever sees a part of it.
        os.link(source, target)
        source.unlink()
        if self._durable:
            flush_folder(target.parent)

    async def _each(self, action: Callable[[Item], T], items: Sequence[Item]) -> list[T | ProtocolFault]:
        """Do it for all, in as many slices as there are threads."""
        size = max(1, -(-len(items) // _THREADS))
        slices = [items[start : start + size] for start in range(0, len(items), size)]
        done = await asyncio.gather(*(self._run(partial(self._one_by_one, action, some)) for some in slices))
        return [result for some in done for result in some]

    def _one_by_one(self, action: Callable[[Item], T], items: Sequence[Item]) -> list[T | ProtocolFault]:
        if not self.root.is_dir():
            # Not mounted: nothing is absent, and no folder is to be made in its place.
            return [_unreachable(self.root) for _ in items]
        results: list[T | ProtocolFault] = []
        for item in items:
            try:
                results.append(action(item))
            except OSError as error:
                results.append(fault(error))
            except ProtocolFault as problem:
                results.append(problem)
        return results

    async def _run(self, action: Callable[[], T]) -> T:
        """Do it in a thread. Cancelled, wait for its end: what it works on is closed then."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, action)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
        except FileNotFoundError as error:
            raise (fault(error) if self.root.is_dir() else _unreachable(self.root)) from error
        except OSError as error:
            raise fault(error) from error


def _unreachable(root: Path) -> ProtocolFault:
    return ProtocolFault(Problem.UNREACHABLE, f"there is no folder {root}")


def _entry(path: str, found: os.stat_result) -> Entry:
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    if stat.S_ISDIR(found.st_mode):
        return Entry(path, Kind.FOLDER, 0, modified)
    return Entry(path, Kind.FILE if stat.S_ISREG(found.st_mode) else Kind.OTHER, found.st_size, modified)


def _listed(prefix: str, entry: "os.DirEntry[str]") -> Entry:
    try:
        return _entry(prefix + entry.name, entry.stat())
    except OSError:
        return Entry(prefix + entry.name, Kind.OTHER)


def _digest(path: Path, algorithm: Algorithm) -> Digest:
    source, digest, size_bytes = PosixSource(path), new_hash(algorithm), 0
    try:
        for block in _blocks(source):
            digest.update(block)
            size_bytes += len(block)
    finally:
        source.close()
    return Digest(algorithm, digest.hexdigest(), size_bytes)


def _blocks(source: PosixSource) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(source.size_bytes + 1, BLOCK)))
    while count := source.readinto(buffer):
        yield buffer[:count]


def _open(access: Access) -> PosixProtocol:
    root = Path(access.address)
    if not root.is_absolute() or ".." in root.parts:
        raise ValueError("the address of a posix storage is an absolute path")
    if access.options:
        raise ValueError(f"a posix storage takes no options, and not {', '.join(access.options)}")
    return PosixProtocol(root, follow_out=access.read_only, durable=access.durable)


plugin = Plugin(open=_open)
