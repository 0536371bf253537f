"""A directory tree: a local disk or a mounted file system."""

import asyncio
import errno
import os
import stat
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from khomas.storage.checksums import Sums, summed
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Abilities, Entry, Plugin, Problem, ProtocolFault, Room

T = TypeVar("T")

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
    """A local file open for reading."""

    def __init__(self, path: Path) -> None:
        # A pipe in the tree must not block the worker for ever.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise ProtocolFault(Problem.REFUSED, f"not a regular file: {path}")

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer; 0 at the end."""
        try:
            return os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise fault(error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class PosixSink:
    """A local file being written under a name in the private folder."""

    def __init__(self, folder: Path, local: Callable[[str], Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._local = local
        self._flushed = False
        self._hidden = folder / uuid.uuid4().hex
        self._descriptor = os.open(self._hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: memoryview) -> None:
        """Append."""
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise fault(error) from error

    def flush(self) -> None:
        """Write everything to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise fault(error) from error
        self._flushed = True

    def adler32(self) -> str:
        """Read everything back."""
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return summed(lambda buffer: os.readv(self._descriptor, [buffer]), sha256=False).adler32
        except OSError as error:
            raise fault(error) from error

    def publish(self, path: str) -> None:
        """Link to the final name: that is atomic and overwrites nothing."""
        target = self._local(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._hidden, target)
            if self._flushed:
                flush_folder(target.parent)
        except OSError as error:
            raise fault(error) from error

    def close(self) -> None:
        """Close the file and forget its hidden name."""
        os.close(self._descriptor)
        self._hidden.unlink(missing_ok=True)


class PosixProtocol:
    """A StorageElement that is a directory of this machine."""

    abilities = Abilities(local=True, remote_checksum=False)

    def __init__(self, root: Path, *, follow_out: bool) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._incoming = root / PRIVATE / "incoming"
        self._follow_out = follow_out

    async def probe(self) -> Room:
        """Ask the file system."""
        return await asyncio.to_thread(self._blocking, self._room)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files."""
        return await asyncio.to_thread(self._each, self._entry, paths)

    async def checksum(self, paths: Sequence[str]) -> list[Sums | ProtocolFault]:
        """Read files."""
        return await asyncio.to_thread(self._each, self._sums, paths)

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Unlink files, and the folders that are empty then."""
        return await asyncio.to_thread(self._each, self._remove, paths)

    def open(self, path: str) -> PosixSource:
        """Open a file."""
        return self._blocking(lambda: PosixSource(self.local_path(path)))

    def create(self, size_bytes: int) -> PosixSink:
        """Begin a file."""
        return self._blocking(lambda: self._sink(size_bytes))

    def local_path(self, path: str) -> Path:
        """Return the path below the root; links that lead out of it are followed in read-only trees only."""
        target = self.root / path
        if not self._follow_out and not target.resolve().is_relative_to(self._resolved):
            raise ProtocolFault(Problem.REFUSED, f"{path} leads out of the root of the storage")
        return target

    async def tidy(self, before: datetime) -> None:
        """Remove hidden files that nobody has written to since."""
        await asyncio.to_thread(self._blocking, lambda: self._tidy(before))

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def _room(self) -> Room:
        if not self.root.is_dir():
            raise ProtocolFault(Problem.UNREACHABLE, f"there is no folder {self.root}")
        space = os.statvfs(self.root)
        return Room(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)

    def _entry(self, path: str) -> Entry:
        found = self.local_path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise ProtocolFault(Problem.TAKEN, f"not a regular file: {path}")
        return Entry(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def _sums(self, path: str) -> Sums:
        source = PosixSource(self.local_path(path))
        try:
            return summed(source.readinto, sha256=False)
        finally:
            source.close()

    def _remove(self, path: str) -> None:
        target = self.local_path(path)
        target.unlink(missing_ok=True)
        if os.path.lexists(target):
            raise ProtocolFault(Problem.PASSING, f"{path} is still there after its deletion")
        self._remove_empty(target.parent)

    def _remove_empty(self, folder: Path) -> None:
        """Remove folders that hold nothing any more, up to the root."""
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _sink(self, size_bytes: int) -> PosixSink:
        free = self._room().free_bytes
        if free is not None and free < size_bytes:
            raise ProtocolFault(Problem.FULL, f"{free} bytes are free, {size_bytes} are needed")
        return PosixSink(self._incoming, self.local_path)

    def _tidy(self, before: datetime) -> None:
        for left in self._incoming.glob("*"):
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < before.timestamp():
                    left.unlink()

    def _each(self, action: Callable[[str], T], paths: Sequence[str]) -> list[T | ProtocolFault]:
        results: list[T | ProtocolFault] = []
        for path in paths:
            try:
                results.append(self._blocking(lambda path=path: action(path)))  # type: ignore[misc]  # bound per turn
            except ProtocolFault as problem:
                results.append(problem)
        return results

    @staticmethod
    def _blocking(action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise fault(error) from error


def _open(address: str, read_only: bool) -> PosixProtocol:
    root = Path(address)
    if not root.is_absolute() or ".." in root.parts:
        raise ValueError("the address of a posix storage is an absolute path")
    return PosixProtocol(root, follow_out=read_only)


plugin = Plugin(open=_open)
