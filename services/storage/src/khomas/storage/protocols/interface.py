"""What a protocol plug-in is: one implementation for each way to reach a storage system.

Calls about many paths are asynchronous, bulk, and answer per path in order. The bytes of one file go through the
blocking `Source` and `Sink`, used by one worker thread from open to close. Paths are relative to the root of the
StorageElement and have passed `khomas.storage.paths.checked`. What a system cannot do is declared in `Abilities`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from khomas.storage.checksums import Sums


class Problem(StrEnum):
    """What went wrong, as far as the rules for trying again care."""

    ABSENT = "absent"
    TAKEN = "taken"
    REFUSED = "refused"
    FULL = "full"
    UNREACHABLE = "unreachable"
    CREDENTIAL = "credential"
    PASSING = "passing"


class ProtocolFault(Exception):
    """An error of the storage system in our words, with its own message."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a protocol can do beyond reading, writing and deleting."""

    # Files have a path on machines that mount the storage, and the service is such a machine.
    local: bool
    # The far end can tell a checksum without sending the bytes to us.
    remote_checksum: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as the storage system shows it."""

    size_bytes: int
    modify_time: datetime


@dataclass(frozen=True, slots=True)
class Room:
    """Space as the storage itself tells it; None where it cannot."""

    free_bytes: int | None
    total_bytes: int | None


class Source(Protocol):
    """A file open for reading. Blocks."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position; 0 at the end."""

    def close(self) -> None:
        """Let go of it."""


class Sink(Protocol):
    """A file being written under a hidden name. Blocks. Closed without `publish`, nothing is left of it."""

    def write(self, data: memoryview) -> None:
        """Append."""

    def flush(self) -> None:
        """Make it survive a power cut once it is published."""

    def adler32(self) -> str:
        """Return the checksum of what has arrived at the far end, not of what was sent."""

    def publish(self, path: str) -> None:
        """Give it its name in one step; raise ProtocolFault TAKEN if there is such a file already."""

    def close(self) -> None:
        """Let go of it; remove it unless it was published."""


class StorageProtocol(Protocol):
    """One storage system, reached in one way. Every method raises only ProtocolFault."""

    abilities: Abilities

    async def probe(self) -> Room:
        """Show that it answers, and how much room there is."""

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files; ABSENT where there is none."""

    async def checksum(self, paths: Sequence[str]) -> list[Sums | ProtocolFault]:
        """Return size and adler32 of files as they are now."""

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Remove files and see that they are gone. One that is gone already is no fault."""

    def open(self, path: str) -> Source:
        """Open a file for reading, in a worker thread."""

    def create(self, size_bytes: int) -> Sink:
        """Begin a new file that will have this size, in a worker thread."""

    def local_path(self, path: str) -> Path | None:
        """Return where the file lies for a process on a machine that mounts the storage, if there is such a place."""

    async def tidy(self, before: datetime) -> None:
        """Remove what sinks of processes that died before this moment have left."""

    async def close(self) -> None:
        """End connections."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """What an entry point of the group `khomas.storage.protocols` gives."""

    # Makes the protocol for an address; raises ValueError with what is wrong with the address.
    # `read_only` storage may have links that lead out of its root.
    open: Callable[[str, bool], StorageProtocol]
