"""New files on any storage, trusting no server: a hidden name, verification, then a name that overwrites nothing.

Servers overwrite where they were told not to, take wrong checksums, and answer 201 to copies that failed. So this is
here, once, above the plug-ins: nothing is visible under its own name before the far end has told the checksum that we
computed from what was sent, or, where it can tell none, before all bytes were read back.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Final
from uuid import UUID
from weakref import WeakSet

from khomas.kit.ids import new_uid
from khomas.storage.checksums import Algorithm, Hash, new_hash, take
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Digest, Entry, Problem, ProtocolFault, StorageProtocol

log = logging.getLogger(__name__)

INCOMING: Final = f"{PRIVATE}/incoming"
_NAMINGS: Final = 3
_AT_ONCE: Final = 8
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
            await take(one, block)

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

    def __init__(self, protocol: StorageProtocol, landings: Landings, hidden: str = "") -> None:
        self.protocol = protocol
        # Given where it lies there already.
        self.hidden = hidden or f"{INCOMING}/{new_uid()}"
        self._landings = landings
        self.published = False

    async def __aenter__(self) -> "Landing":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.published:
            await asyncio.shield(self._discard())

    async def take(
        self, blocks: AsyncGenerator[memoryview, None], wanted: Wanted, *, verify: bool = True
    ) -> Mapping[Algorithm, str]:
        """Write what comes, and verify it; return its checksums. Who does not want to `verify` does so later.

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
        if verify:
            await self.verify(wanted.size_bytes, meter.sums)
        return meter.sums

    async def afresh(self) -> None:
        """Begin again under another name: a server may remember the checksum of what had the first one."""
        await self._discard()
        self.hidden = f"{INCOMING}/{new_uid()}"

    async def verify(self, size_bytes: int, sums: Mapping[Algorithm, str]) -> None:
        """Compare what lies there with what should; raise CHECKSUM."""
        (fault,) = await verify_all([(self, size_bytes, sums)])
        if fault is not None:
            raise fault

    async def publish(self, path: str) -> None:
        """Give it its name; raise TAKEN if there is something already, or a file where a folder is needed."""
        (fault,) = await publish_all([(self, path)])
        if fault is not None:
            raise fault

    async def _discard(self) -> None:
        await discard_all([self])


Sent = tuple[Landing, int, Mapping[Algorithm, str]]


async def verify_all(sent: Sequence[Sent]) -> list[ProtocolFault | None]:
    """Compare files of one storage with what was sent, all in one question if it can tell checksums."""
    if not sent:
        return []
    protocol = sent[0][0].protocol
    told: dict[str, Digest] = {}
    algorithm = next((one for one in protocol.abilities.checksums if one in sent[0][2]), None)
    if algorithm is not None and len(sent) > 1:
        paths = [landing.hidden for landing, _, _ in sent]
        answers = await protocol.checksum(paths, algorithm)
        told = {path: answer for path, answer in zip(paths, answers, strict=True) if isinstance(answer, Digest)}
        told |= await _with_sizes(protocol, {path: one for path, one in told.items() if one.size_bytes is None})
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def compared(one: Sent) -> ProtocolFault | None:
        async with at_once:
            return await _compared(one, told.get(one[0].hidden))

    return await asyncio.gather(*map(compared, sent))


async def _with_sizes(protocol: StorageProtocol, told: Mapping[str, Digest]) -> dict[str, Digest]:
    entries = await protocol.stat(list(told)) if told else []
    return {
        path: replace(told[path], size_bytes=entry.size_bytes)
        for path, entry in zip(told, entries, strict=True)
        if isinstance(entry, Entry)
    }


async def _compared(sent: Sent, told: Digest | None) -> ProtocolFault | None:
    landing, size_bytes, sums = sent
    try:
        if told is None or told.size_bytes is None:
            told = await digest(landing.protocol, landing.hidden, sums)
    except ProtocolFault as fault:
        return fault
    if told.size_bytes == size_bytes and told.value == sums[told.algorithm]:
        return None
    arrived = f"{told.size_bytes} bytes with {told.algorithm} {told.value}"
    message = f"{arrived} arrived where {size_bytes} bytes with {sums[told.algorithm]} were sent"
    return ProtocolFault(Problem.CHECKSUM, message)


async def publish_all(named: Sequence[tuple[Landing, str]]) -> list[ProtocolFault | None]:
    """Give files of one storage their names; TAKEN if there is something, or a file where a folder is needed."""
    faults: dict[int, ProtocolFault] = {}
    left = list(range(len(named)))
    for _ in range(_NAMINGS):
        if not left:
            break
        pairs = [(named[number][0].hidden, named[number][1]) for number in left]
        answers = dict(zip(left, await named[0][0].protocol.rename(pairs), strict=True))
        for number, fault in answers.items():
            named[number][0].published = fault is None
            if fault is not None:
                faults[number] = fault
        left = [
            number for number, fault in answers.items() if fault is not None and _lacks_folder(fault, named[number])
        ]
        # Missing, or removed by whoever has just deleted the last file in it.
        unmade = await _folders([named[number] for number in left])
        for number in list(left):
            if (fault := unmade.get(_folder(named[number][1]))) is not None:
                faults[number] = fault
                left.remove(number)
    for number in left:
        faults[number] = ProtocolFault(Problem.PASSING, f"the folder of {named[number][1]} was removed again and again")
    return [None if named[number][0].published else faults[number] for number in range(len(named))]


async def discard_all(landings: Iterable[Landing]) -> None:
    """Delete what has got no name, of one storage."""
    left = [one for one in landings if not one.published]
    if not left:
        return
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            faults = await left[0].protocol.delete([one.hidden for one in left])
    except TimeoutError:
        faults = [ProtocolFault(Problem.PASSING, "no answer")] * len(left)
    for landing, fault in zip(left, faults, strict=True):
        if fault is not None:
            log.info("storage.left_behind", extra={"path": landing.hidden, "error": fault.message})


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _lacks_folder(fault: ProtocolFault, named: tuple[Landing, str]) -> bool:
    return fault.problem is Problem.ABSENT and bool(_folder(named[1]))


async def _folders(named: Sequence[tuple[Landing, str]]) -> dict[str, ProtocolFault | None]:
    if not named:
        return {}
    folders = sorted({_folder(path) for _, path in named})
    return dict(zip(folders, await named[0][0].protocol.make_folders(folders), strict=True))


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
            await take(found, block)
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
