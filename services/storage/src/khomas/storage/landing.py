"""New files on any storage, trusting no server: a hidden name, verification, then a name that overwrites nothing.

Servers overwrite where they were told not to, take wrong checksums, and answer 201 to copies that failed. So this is
here, once, above the plug-ins: nothing is visible under its own name before the far end has told the checksum that we
computed from what was sent, or, where it can tell none, before all bytes were read back.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final
from uuid import UUID
from weakref import WeakSet

from khomas.kit.ids import new_uid
from khomas.storage.checksums import Algorithm, Hash, new_hash
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Digest, Entry, Problem, ProtocolFault, StorageProtocol

log = logging.getLogger(__name__)

INCOMING: Final = f"{PRIVATE}/incoming"
# Blocks from this size on are summed by a thread: less costs less than the way there.
_LARGE: Final = 256 * 1024
_NAMINGS: Final = 3
_UID: Final = 36
_DISCARD_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must come out; an empty checksum is not known yet."""

    size_bytes: int
    adler32: str

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes with adler32 {self.adler32 or 'unknown'}"


class SourceFailed(Exception):
    """Whoever gave the bytes did not give all of them."""

    def __init__(self, fault: ProtocolFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class SourceDiffers(Exception):
    """The bytes that were given are not those that are wanted."""


class Metered:
    """Passes blocks on, counts and sums them, and ends with SourceDiffers when they are not what is wanted."""

    def __init__(
        self, blocks: AsyncGenerator[memoryview, None], wanted: Wanted, algorithms: frozenset[Algorithm]
    ) -> None:
        self.size_bytes = 0
        self.ended = False
        # What the far side of a put may have swallowed, or clad in an error of its own.
        self.trouble: SourceFailed | SourceDiffers | None = None
        self._blocks = blocks
        self._wanted = wanted
        self._hashes: dict[Algorithm, Hash] = {one: new_hash(one) for one in algorithms | {Algorithm.ADLER32}}

    @property
    def sums(self) -> Mapping[Algorithm, str]:
        """Return the checksums of what has passed so far."""
        return {algorithm: one.hexdigest() for algorithm, one in self._hashes.items()}

    async def passing(self) -> AsyncGenerator[memoryview, None]:
        """Yield the blocks."""
        async with aclosing(self._blocks) as blocks:
            try:
                async for block in blocks:
                    await self._add(block)
                    yield block
            except ProtocolFault as fault:
                self.trouble = SourceFailed(fault)
                raise self.trouble from fault
        self._compare()
        self.ended = True

    async def _add(self, block: memoryview) -> None:
        self.size_bytes += len(block)
        if self.size_bytes > self._wanted.size_bytes:
            # A server that was told the size would be confused by more.
            self._compare()
        for one in self._hashes.values():
            await asyncio.to_thread(one.update, block) if len(block) >= _LARGE else one.update(block)

    def _compare(self) -> None:
        found = Wanted(self.size_bytes, self.sums[Algorithm.ADLER32])
        if found.size_bytes != self._wanted.size_bytes or self._wanted.adler32 not in ("", found.adler32):
            self.trouble = SourceDiffers(f"the source has {found}, not {self._wanted}")
            raise self.trouble


class Landings:
    """Begins new files; knows which storages are ready for them."""

    def __init__(self) -> None:
        self._ready: WeakSet[StorageProtocol] = WeakSet()

    async def begin(self, protocol: StorageProtocol) -> "Landing":
        """Return a place for one new file: `async with await landings.begin(protocol) as landing`."""
        if protocol not in self._ready:
            (fault,) = await protocol.make_folders([INCOMING])
            if fault is not None:
                raise fault
            self._ready.add(protocol)
        return Landing(protocol, self)

    def forget(self, protocol: StorageProtocol) -> None:
        """Look again the next time: the folder is not there any more."""
        self._ready.discard(protocol)


class Landing:
    """One new file under a hidden name. Left unpublished, nothing of it stays."""

    def __init__(self, protocol: StorageProtocol, landings: Landings) -> None:
        self.protocol = protocol
        self.hidden = f"{INCOMING}/{new_uid()}"
        self._landings = landings
        self._published = False

    async def __aenter__(self) -> "Landing":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            await asyncio.shield(self._discard())

    async def take(self, blocks: AsyncGenerator[memoryview, None], wanted: Wanted) -> Mapping[Algorithm, str]:
        """Write what comes, and verify it; return its checksums.

        Raises SourceFailed, SourceDiffers, or a ProtocolFault of this storage.
        """
        meter = Metered(blocks, wanted, frozenset(self.protocol.abilities.checksums[:1]))
        try:
            async with aclosing(meter.passing()) as passing:
                await self.protocol.put(self.hidden, passing, wanted.size_bytes)
                # Who counts bytes need not have asked for the end.
                async for _ in passing:
                    break
        except (ProtocolFault, SourceFailed, SourceDiffers) as error:
            if meter.trouble is not None:
                raise meter.trouble from error
            if isinstance(error, ProtocolFault) and error.problem is Problem.ABSENT:
                self._landings.forget(self.protocol)
            raise
        if not meter.ended:
            message = f"the storage says that all is there after {meter.size_bytes} of {wanted.size_bytes} bytes"
            raise meter.trouble or ProtocolFault(Problem.PASSING, message)
        await self.verify(wanted.size_bytes, meter.sums)
        return meter.sums

    async def afresh(self) -> None:
        """Begin again under another name: a server may remember the checksum of what had the first one."""
        await self._discard()
        self.hidden = f"{INCOMING}/{new_uid()}"

    async def verify(self, size_bytes: int, sums: Mapping[Algorithm, str]) -> None:
        """Compare what lies there with what should; raise CHECKSUM."""
        found = await digest(self.protocol, self.hidden, sums)
        if found.size_bytes != size_bytes or found.value != sums[found.algorithm]:
            arrived = f"{found.size_bytes} bytes with {found.algorithm} {found.value}"
            message = f"{arrived} arrived where {size_bytes} bytes with {sums[found.algorithm]} were sent"
            raise ProtocolFault(Problem.CHECKSUM, message)

    async def publish(self, path: str) -> None:
        """Give it its name; raise TAKEN if there is something already, or a file where a folder is needed."""
        for _ in range(_NAMINGS):
            (fault,) = await self.protocol.rename([(self.hidden, path)])
            if fault is None:
                self._published = True
                return
            folder = path.rpartition("/")[0]
            if fault.problem is not Problem.ABSENT or not folder:
                raise fault
            # Missing, or removed by whoever has just deleted the last file in it.
            (unmade,) = await self.protocol.make_folders([folder])
            if unmade is not None:
                raise unmade
        raise ProtocolFault(Problem.PASSING, f"the folder of {path} was removed again and again")

    async def _discard(self) -> None:
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                (fault,) = await self.protocol.delete([self.hidden])
        except TimeoutError:
            fault = ProtocolFault(Problem.PASSING, "no answer")
        if fault is not None:
            log.info("storage.left_behind", extra={"path": self.hidden, "error": fault.message})


async def digest(protocol: StorageProtocol, path: str, known: Mapping[Algorithm, str]) -> Digest:
    """Return size and one checksum of a file, of an algorithm of which the right value is known.

    The far end is asked; where it cannot tell, the bytes are read back. Raises ProtocolFault.
    """
    for algorithm in protocol.abilities.checksums:
        if algorithm in known:
            (told,) = await protocol.checksum([path], algorithm)
            if isinstance(told, Digest):
                return told if told.size_bytes is not None else await _with_size(protocol, path, told)
            if told.problem is not Problem.UNSUPPORTED:
                raise told
    return await read_back(protocol, path)


async def read_back(protocol: StorageProtocol, path: str) -> Digest:
    """Read all bytes of a file and sum them."""
    found, size_bytes = new_hash(Algorithm.ADLER32), 0
    async with aclosing(protocol.get(path)) as blocks:
        async for block in blocks:
            await asyncio.to_thread(found.update, block) if len(block) >= _LARGE else found.update(block)
            size_bytes += len(block)
    return Digest(Algorithm.ADLER32, found.hexdigest(), size_bytes)


async def _with_size(protocol: StorageProtocol, path: str, told: Digest) -> Digest:
    (entry,) = await protocol.stat([path])
    if not isinstance(entry, Entry):
        raise entry
    return Digest(told.algorithm, told.value, entry.size_bytes)


async def tidy(protocol: StorageProtocol, before: datetime) -> None:
    """Delete hidden files of processes that died: begun, and last written to, before this moment."""
    try:
        async with aclosing(protocol.entries(INCOMING)) as pages:
            async for page in pages:
                old = [entry.path for entry in page if _last_seen(entry) < before]
                faults = await protocol.delete(old) if old else []
                for path, fault in zip(old, faults, strict=True):
                    if fault is not None:
                        log.warning("storage.untidy", extra={"path": path, "error": fault.message})
    except ProtocolFault as fault:
        if fault.problem is not Problem.ABSENT:
            raise


def _last_seen(entry: Entry) -> datetime:
    """Return when a hidden file was begun, by our clock, or written to, by the server's; now if nobody knows."""
    times = [entry.modify_time] if entry.modify_time is not None else []
    try:
        # nginx adds something to the names of parts that it leaves behind.
        uid = UUID(entry.path.rpartition("/")[2][:_UID])
        times.append(datetime.fromtimestamp((uid.int >> 80) / 1000, UTC))
    except (ValueError, OverflowError):
        log.info("storage.unknown", extra={"path": entry.path})
    return max(times, default=datetime.now(UTC))
