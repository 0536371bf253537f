"""Storages that are only read: whoever can look and read gets the rest of the interface, which refuses."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import (
    Abilities,
    Digest,
    Entry,
    Problem,
    ProtocolFault,
    Room,
    Tape,
    ThirdParty,
)


class Reader(Protocol):
    """What reading takes."""

    @property
    def third_party(self) -> ThirdParty | None:
        """Return how other storages fetch from it."""

    async def space(self) -> Room:
        """Show that it answers."""

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders."""

    def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder."""

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask for checksums."""

    def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read."""

    def local_path(self, path: str) -> Path | None:
        """Return where the file lies on this machine."""

    async def close(self) -> None:
        """End connections."""


class ReadingOnly:
    """A protocol that writes nothing."""

    tape: Tape | None = None

    def __init__(self, reader: Reader, abilities: Abilities) -> None:
        self._reader = reader
        self.abilities = abilities
        self.third_party = reader.third_party

    async def space(self) -> Room:
        """Show that it answers; there is no room for anything."""
        return Room(0, (await self._reader.space()).total_bytes)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders."""
        return await self._reader.stat(paths)

    def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder."""
        return self._reader.entries(folder)

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask for checksums."""
        return await self._reader.checksum(paths, algorithm)

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Refuse."""
        return [_refusal() for _ in paths]

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Refuse."""
        return [_refusal() for _ in paths]

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Refuse."""
        return [_refusal() for _ in pairs]

    def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read."""
        return self._reader.get(path, start, size_bytes)

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Refuse."""
        raise _refusal()

    def local_path(self, path: str) -> Path | None:
        """Return where the file lies on this machine."""
        return self._reader.local_path(path)

    async def close(self) -> None:
        """End connections."""
        await self._reader.close()


def _refusal() -> ProtocolFault:
    return ProtocolFault(Problem.UNSUPPORTED, "the storage is only read")
