"""Copies one file from storage to storage, with checksums on the way and at the far end. Blocks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.checksums import BLOCK, Summing
from khomas.storage.protocols.interface import Problem, ProtocolFault, Sink, Source, StorageProtocol

_SOURCE_SIDE = {
    Problem.CREDENTIAL: pb.TRANSFER_REASON_CREDENTIAL,
    Problem.PASSING: pb.TRANSFER_REASON_TRANSIENT,
}
_DESTINATION_SIDE = {
    Problem.FULL: pb.TRANSFER_REASON_SPACE,
    Problem.CREDENTIAL: pb.TRANSFER_REASON_CREDENTIAL,
    Problem.PASSING: pb.TRANSFER_REASON_TRANSIENT,
}


class CopyFailed(Exception):
    """A copy that did not succeed, in the words of transfers."""

    def __init__(self, reason: pb.TransferReason.ValueType, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must come out."""

    size_bytes: int
    adler32: str


class Copy:
    """One copy in the making; another thread may stop it and see how far it is."""

    def __init__(self, wanted: Wanted, *, durable: bool) -> None:
        self.bytes = 0
        self._durable = durable
        self._wanted = wanted
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End it at the next block."""
        self._stopped.set()

    def run(self, source: StorageProtocol, source_path: str, destination: StorageProtocol) -> Sink:
        """Copy and verify; return the sink, ready to be published. Raises CopyFailed and leaves nothing."""
        with source_side():
            reader = source.open(source_path)
        try:
            with destination_side():
                sink = destination.create(self._wanted.size_bytes)
            try:
                self._stream(reader, sink)
                self._verify(sink)
            except BaseException:
                sink.close()
                raise
            return sink
        finally:
            reader.close()

    def _stream(self, reader: Source, sink: Sink) -> None:
        # Letting the kernel copy and reading afterwards was not faster (measured 1.5 times slower without the check
        # at the far end), and on some file systems the copy would share its blocks with the source.
        summing, buffer = Summing(sha256=False), memoryview(bytearray(BLOCK))
        while True:
            self._check_stopped()
            with source_side():
                count = reader.readinto(buffer)
            if not count:
                break
            summing.add(buffer[:count])
            with destination_side():
                sink.write(buffer[:count])
            self.bytes = summing.size_bytes
        sent = Wanted(summing.size_bytes, summing.adler32)
        if sent != self._wanted:
            message = f"the source has {_said(sent)}, not {_said(self._wanted)}"
            raise CopyFailed(pb.TRANSFER_REASON_SOURCE_CHECKSUM, message)

    def _verify(self, sink: Sink) -> None:
        with destination_side():
            if self._durable:
                sink.flush()
            arrived = sink.adler32()
        if arrived != self._wanted.adler32:
            message = f"adler32 {arrived} arrived where {self._wanted.adler32} was sent"
            raise CopyFailed(pb.TRANSFER_REASON_DESTINATION_CHECKSUM, message)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise CopyFailed(pb.TRANSFER_REASON_CANCELLED, "stopped")


def published(sink: Sink, path: str) -> bool:
    """Give a copy its name; False if that is taken."""
    with destination_side():
        try:
            sink.publish(path)
        except ProtocolFault as fault:
            # ABSENT: a file stands where a folder is needed.
            if fault.problem in (Problem.TAKEN, Problem.ABSENT):
                return False
            raise
    return True


@contextmanager
def source_side() -> Iterator[None]:
    """Blame the source for a fault."""
    try:
        yield
    except ProtocolFault as fault:
        raise CopyFailed(_SOURCE_SIDE.get(fault.problem, pb.TRANSFER_REASON_SOURCE), fault.message) from fault


@contextmanager
def destination_side() -> Iterator[None]:
    """Blame the destination for a fault."""
    try:
        yield
    except ProtocolFault as fault:
        reason = _DESTINATION_SIDE.get(fault.problem, pb.TRANSFER_REASON_DESTINATION)
        raise CopyFailed(reason, fault.message) from fault


def _said(wanted: Wanted) -> str:
    return f"{wanted.size_bytes} bytes with adler32 {wanted.adler32}"
