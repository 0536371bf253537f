"""What a protocol plug-in is: one implementation for each way to reach a storage system.

Everything is asynchronous; calls about many paths are bulk and answer per path in order. A plug-in bounds every request
that it sends by a time of its own, and may be cancelled at any moment. It says what the far end says: to believe none
of it, hidden names, verification and names that overwrite nothing are `khomas.storage.landing`, once for all plug-ins.
Paths are relative to the root of the StorageElement, have passed `khomas.storage.paths.checked`, and are never quoted.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from khomas.kit.credentials import CredentialProvider
from khomas.storage.checksums import Algorithm


class Problem(StrEnum):
    """What went wrong, as far as the rules for trying again care."""

    # There is no such file or folder.
    ABSENT = "absent"
    # There is one already, or one of another kind.
    TAKEN = "taken"
    # We may not do that.
    REFUSED = "refused"
    # No space, or over quota.
    FULL = "full"
    # Nobody answers there.
    UNREACHABLE = "unreachable"
    # The credential is missing, expired, or not believed.
    CREDENTIAL = "credential"
    # The far end has compared checksums, and they differ.
    CHECKSUM = "checksum"
    # Address, options or installation are wrong: trying again changes nothing.
    CONFIGURATION = "configuration"
    # This server cannot do that, whatever the protocol allows.
    UNSUPPORTED = "unsupported"
    # Anything that may be gone the next time.
    PASSING = "passing"


class ProtocolFault(Exception):
    """An error of the storage system in our words, with its own message."""

    def __init__(self, problem: Problem, message: str, *, other_end: bool = False) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message
        # Of a third-party copy: the fault is that of the storage to which this one spoke.
        self.other_end = other_end


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a protocol can do. Single servers may do less: they answer UNSUPPORTED."""

    # Files have a path on machines that mount the storage, and the service is such a machine.
    local: bool = False
    # New files, folders and names can be made, and files deleted.
    writes: bool = True
    # Checksums that the far end may tell without sending the bytes to us, the preferred one first.
    checksums: tuple[Algorithm, ...] = ()
    # `rename` overwrites nothing even when two of them meet.
    exclusive_rename: bool = False
    # There are folders: an empty one can be made and is listed.
    folders: bool = True


class Kind(StrEnum):
    """What a name stands for."""

    FILE = "file"
    FOLDER = "folder"
    # A device, a pipe, a link that leads nowhere.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the storage system shows of a file or folder."""

    path: str
    kind: Kind
    size_bytes: int = 0
    modify_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    """A checksum as the far end tells it, in lower-case hexadecimal digits of full length."""

    algorithm: Algorithm
    value: str
    # None where it is not told along with it.
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """Space as the storage itself tells it; None where it cannot."""

    free_bytes: int | None
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of one storage as another one reaches it. Lives as long as its credential."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class ThirdParty(Protocol):
    """Copies between two storages of one family that do not pass through us."""

    @property
    def family(self) -> str:
        """Return what both ends must have in common: "http", "root"."""

    async def remote(self, path: str, *, write: bool) -> Remote:
        """Return how another storage reads or writes a file of this one."""

    def pull(self, source: Remote, path: str) -> AsyncGenerator[int, None]:
        """Let this storage fetch a file under a name that is free; yield how many bytes are there so far."""

    def push(self, path: str, target: Remote) -> AsyncGenerator[int, None]:
        """Let this storage send a file; yield how many bytes are there so far."""


@runtime_checkable
class Lending(Protocol):
    """What a protocol has besides, if its storage gives rights to single files away."""

    async def lend(self, paths: Sequence[str], lifetime: timedelta) -> list[Remote | ProtocolFault]:
        """Return how anybody reads each of these files, and nothing else, for so long; UNSUPPORTED where it cannot."""


class Locality(StrEnum):
    """Where the bytes of a file of a tape system are; the words of the WLCG Tape REST interface."""

    DISK = "disk"
    TAPE = "tape"
    BOTH = "both"
    NONE = "none"
    LOST = "lost"
    UNAVAILABLE = "unavailable"


class Recall(StrEnum):
    """Where the recall of one file stands."""

    # Not known to the tape system: asked too early, or forgotten.
    UNKNOWN = "unknown"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Recalling:
    """The recall of one file as the tape system shows it."""

    state: Recall
    message: str = ""
    queue_position: int | None = None


class Tape(Protocol):
    """Files that have to be brought to disk before they can be read."""

    async def locality(self, paths: Sequence[str]) -> list[Locality | ProtocolFault]:
        """Tell where the bytes are."""

    async def stage(self, paths: Sequence[str], lifetime: timedelta) -> list[str | ProtocolFault]:
        """Ask for files on disk for so long, in as few requests as possible; return the id of each one's request."""

    async def staging(self, request: str, paths: Sequence[str]) -> list[Recalling | ProtocolFault]:
        """Tell how far a request is; "*" stands for any, when nobody knows which one it was."""

    async def cancel(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Take it back; over already is no fault."""

    async def release(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Tell that they need not stay on disk any more."""


class StorageProtocol(Protocol):
    """One storage system, reached in one way. Every method raises or returns only ProtocolFault."""

    @property
    def abilities(self) -> Abilities:
        """Return what it can do."""

    @property
    def third_party(self) -> ThirdParty | None:
        """Return copies from storage to storage, if the protocol has them."""

    @property
    def tape(self) -> Tape | None:
        """Return recalls, if the storage has tape."""

    async def space(self) -> Room:
        """Show that it answers, and how much room there is."""

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders; ABSENT where there is none."""

    def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """Yield what is directly in a folder ("" is the root), some at a time as they come, in no order."""

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask the far end for checksums of files as they are now; UNSUPPORTED where it has none."""

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Remove files. One that is gone already is no fault; a folder that holds something is a fault and stays."""

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Make folders and those above them. One that is there already is no fault."""

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Give files other names; TAKEN where there is something already, ABSENT where the new folder is missing.

        A plug-in may make the folder.
        """

    def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes of a file from `start`; a block stays as it is when the next one is asked for.

        What is past the end is not there: nothing is yielded, and nothing is wrong. A connection that ends early is
        PASSING, never the end of the file. Close it: `contextlib.aclosing`.
        """

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write a file of this size under a name that is free; ABSENT where the folder is missing.

        A plug-in may make the folder. What `blocks` raises ends it, and need not be passed on. What has arrived of a
        file that failed may stay: the caller deletes it.
        """

    def local_path(self, path: str) -> Path | None:
        """Return where the file lies for a process on a machine that mounts the storage, if there is such a place."""

    async def close(self) -> None:
        """End connections."""


@dataclass(frozen=True, slots=True)
class Access:
    """One access point of a StorageElement, as a plug-in opens it."""

    address: str
    # Nothing is ever written there.
    read_only: bool = False
    # Flush what is written before saying that it is.
    durable: bool = False
    credential: CredentialProvider | None = None
    # What the plug-in's settings take; it checks them.
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plugin:
    """What an entry point of the group `khomas.storage.protocols` gives."""

    # Makes the protocol, without any connection yet; raises ValueError with what is wrong with address or options.
    open: Callable[[Access], StorageProtocol]
