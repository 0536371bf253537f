"""Copies one file from storage to storage: past us where both ends can, else through us; verified at the far end."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.checksums import Algorithm
from khomas.storage.landing import Landing, SourceDiffers, SourceFailed, Wanted, read_back
from khomas.storage.links.bucket import Throttle
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.reading import Reading, Source

log = logging.getLogger(__name__)

_COMMON = {
    Problem.CREDENTIAL: pb.TRANSFER_REASON_CREDENTIAL,
    Problem.PASSING: pb.TRANSFER_REASON_TRANSIENT,
    Problem.CONFIGURATION: pb.TRANSFER_REASON_CONFIGURATION,
}
_DESTINATION_SIDE = _COMMON | {
    Problem.FULL: pb.TRANSFER_REASON_SPACE,
    Problem.CHECKSUM: pb.TRANSFER_REASON_DESTINATION_CHECKSUM,
}


class CopyFailed(Exception):
    """A copy that did not succeed, in the words of transfers."""

    def __init__(self, reason: pb.TransferReason.ValueType, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Copy:
    """One copy in the making; whoever looks sees how far it is, and may stop it."""

    def __init__(self, wanted: Wanted) -> None:
        self.bytes = 0
        # Bytes that went through this process.
        self.streamed_bytes = 0
        # How they were read, once there was a stream.
        self.reading: Reading | None = None
        # Checksums of what was sent, where nobody has compared them with what arrived.
        self.unverified: Mapping[Algorithm, str] | None = None
        self._wanted = wanted
        self._stopped = False
        self._task: asyncio.Task[object] | None = None

    @property
    def stopped(self) -> bool:
        """Tell whether it was."""
        return self._stopped

    def stop(self) -> None:
        """End it."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def run(
        self,
        source: StorageProtocol,
        path: str,
        landing: Landing,
        *,
        others: Sequence[Source] = (),
        throttle: Throttle | None = None,
        verify: bool = True,
    ) -> None:
        """Copy and verify; raises CopyFailed.

        A stream goes on from `others` when the source gives up. Without `verify` what was streamed stays `unverified`.
        """
        self._task = asyncio.current_task()
        try:
            self._check_stopped()
            if not await self._past_us(source, path, landing):
                self.reading = Reading([Source("", source, path), *others], throttle)
                await self._through_us(self.reading, landing, verify=verify)
            self._check_stopped()
        except asyncio.CancelledError:
            if not self._stopped or self._task is None:
                raise
            self._task.uncancel()
            self._check_stopped()
        finally:
            self._task = None

    async def _through_us(self, reading: Reading, landing: Landing, *, verify: bool) -> None:
        try:
            with destination_side():
                sums = await landing.take(self._counted(reading.blocks()), self._wanted, verify=verify)
        except SourceFailed as error:
            raise CopyFailed(source_reason(error.fault), error.fault.message) from error
        except SourceDiffers as error:
            # Of more than one copy nobody can tell which was wrong: the next attempt reads one only.
            mixed = reading.switched
            reason = pb.TRANSFER_REASON_TRANSIENT if mixed else pb.TRANSFER_REASON_SOURCE_CHECKSUM
            raise CopyFailed(reason, str(error)) from error
        self.unverified = None if verify else sums

    async def _counted(self, blocks: AsyncGenerator[memoryview, None]) -> AsyncGenerator[memoryview, None]:
        async with aclosing(blocks):
            async for block in blocks:
                yield block
                self.bytes += len(block)
                self.streamed_bytes += len(block)

    async def _past_us(self, source: StorageProtocol, path: str, landing: Landing) -> bool:
        """Let the storages do it, whichever of them can; False if none can."""
        giver, taker = source.third_party, landing.protocol.third_party
        if giver is None or taker is None or giver.family != taker.family:
            return False
        for pulls in (True, False):
            try:
                if pulls:
                    marks = taker.pull(await giver.remote(path, write=False), landing.hidden)
                else:
                    marks = giver.push(path, await taker.remote(landing.hidden, write=True))
                await self._follow(marks)
            except ProtocolFault as fault:
                if fault.problem is not Problem.UNSUPPORTED and not fault.other_end:
                    raise _blamed(fault, pulls=pulls) from fault
                # Where two do not reach or trust each other, the other way round may work, and through us too.
                log.info("copy.not_past_us", extra={"pulls": pulls, "error": fault.message})
                self.bytes = 0
                if fault.problem is not Problem.UNSUPPORTED:
                    await landing.afresh()
            else:
                await self._verify(source, path, landing)
                return True
        return False

    async def _follow(self, marks: AsyncGenerator[int, None]) -> None:
        async with aclosing(marks):
            async for mark in marks:
                self.bytes = mark

    async def _verify(self, source: StorageProtocol, path: str, landing: Landing) -> None:
        """Compare what has arrived; if it is wrong, find out whether the source was."""
        known = {Algorithm.ADLER32: self._wanted.adler32}
        try:
            await landing.verify(self._wanted.size_bytes, known)
        except ProtocolFault as fault:
            if fault.problem is Problem.CHECKSUM:
                with source_side():
                    # What the source tells may be of yesterday: XRootD keeps checksums beside files.
                    found = await read_back(source, path)
                if (found.size_bytes, found.value) != (self._wanted.size_bytes, self._wanted.adler32):
                    there = Wanted(found.size_bytes or 0, found.value)
                    message = f"the source has {there}, not {self._wanted}"
                    raise CopyFailed(pb.TRANSFER_REASON_SOURCE_CHECKSUM, message) from fault
            raise CopyFailed(destination_reason(fault), fault.message) from fault
        self.bytes = self._wanted.size_bytes

    def _check_stopped(self) -> None:
        if self._stopped:
            raise CopyFailed(pb.TRANSFER_REASON_CANCELLED, "stopped")


async def published(landing: Landing, path: str) -> bool:
    """Give a copy its name; False if that is taken."""
    with destination_side():
        try:
            await landing.publish(path)
        except ProtocolFault as fault:
            # ABSENT: a file stands where a folder is needed.
            if fault.problem in (Problem.TAKEN, Problem.ABSENT):
                return False
            raise
    return True


def source_reason(fault: ProtocolFault) -> pb.TransferReason.ValueType:
    """Return what a fault of the source means for a transfer."""
    return _COMMON.get(fault.problem, pb.TRANSFER_REASON_SOURCE)


def destination_reason(fault: ProtocolFault) -> pb.TransferReason.ValueType:
    """Return what a fault of the destination means for a transfer."""
    return _DESTINATION_SIDE.get(fault.problem, pb.TRANSFER_REASON_DESTINATION)


def _blamed(fault: ProtocolFault, *, pulls: bool) -> CopyFailed:
    """Blame the storage that did the work: the destination when it fetches, the source when it sends."""
    return CopyFailed((destination_reason if pulls else source_reason)(fault), fault.message)


@contextmanager
def source_side() -> Iterator[None]:
    """Blame the source for a fault."""
    try:
        yield
    except ProtocolFault as fault:
        raise CopyFailed(source_reason(fault), fault.message) from fault


@contextmanager
def destination_side() -> Iterator[None]:
    """Blame the destination for a fault."""
    try:
        yield
    except ProtocolFault as fault:
        raise CopyFailed(destination_reason(fault), fault.message) from fault
