"""One attempt at one transfer: what it reads, what became of it, and what held it up."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.storage.elements.elements import Element
from khomas.storage.landing import Wanted
from khomas.storage.links.choosing import Candidate, nearest
from khomas.storage.links.measures import Measure
from khomas.storage.transfers.copying import Copy, CopyFailed
from khomas.storage.transfers.queue import Outcome
from khomas.storage.transfers.transfers import sources_of
from khomas.storage.transfers.turns import ends

MOVER: Final = "mover"
_SUCCESS = pb.TRANSFER_REASON_UNSPECIFIED


@dataclass(slots=True)
class Attempt:
    """A transfer that this process works on."""

    row: Mapping[str, Any]
    start_time: datetime
    started: float
    wanted: Wanted = field(default_factory=lambda: Wanted(0, ""))
    copy: Copy = field(default_factory=lambda: Copy(Wanted(0, "")))
    # The copies to read, the best first.
    candidates: Sequence[Candidate] = ()
    path: str = ""
    copied: Wanted | None = None
    executor: str = MOVER
    # How it ended, once it has.
    ended: Outcome | None = None

    @property
    def uid(self) -> str:
        """Return the transfer's."""
        return str(self.row["uid"])

    @property
    def epoch(self) -> int:
        """Return that of the lease."""
        return int(self.row["lease_epoch"])

    @property
    def source(self) -> str:
        """Return the StorageElement that is read; empty while none is chosen."""
        reading = self.copy.reading
        if reading is not None and reading.source.element:
            return reading.source.element
        return self.candidates[0][0].id if self.candidates else ""

    def end(self, reason: pb.TransferReason.ValueType = _SUCCESS, message: str = "") -> Outcome:
        """Say how it ended."""
        elapsed = time.monotonic() - self.started
        queued = max(0.0, (self.start_time - self.row["next_attempt_time"]).total_seconds())
        following = self._following(reason)
        reading = self.copy.reading
        self.ended = Outcome(
            uid=self.uid,
            epoch=self.epoch,
            attempt=self.row["attempt"],
            max_attempts=self.row["max_attempts"],
            file_uid=self.row["file_uid"],
            destination=self.row["destination"],
            source=self.source,
            source_path=next((one.path for element, one in self.candidates if element.id == self.source), ""),
            path=self.path,
            reason=reason,
            message=message or ("; ".join(reading.remarks) if reading is not None else ""),
            bytes=self.copy.bytes,
            copied=self.copied,
            start_time=self.start_time,
            elapsed_seconds=elapsed,
            deadline=self.row["deadline"],
            next_source=following,
            elsewhere=following not in ("", self.source),
            queued_seconds=queued,
            bottleneck=self._bottleneck(queued, elapsed) if self.candidates else pb.BOTTLENECK_UNSPECIFIED,
            streamed_bytes=self.copy.streamed_bytes,
            executor=self.executor,
        )
        return self.ended

    def _following(self, reason: pb.TransferReason.ValueType) -> str:
        """Return where the next attempt is to read."""
        names = [element.id for element, _ in self.candidates]
        blamed = reason in (pb.TRANSFER_REASON_SOURCE, pb.TRANSFER_REASON_SOURCE_CHECKSUM)
        rest = [name for name in names if name != self.source] if blamed else names
        return (rest or names or [""])[0]

    def _bottleneck(self, queued: float, elapsed: float) -> pb.Bottleneck.ValueType:
        reading = self.copy.reading
        waits = (reading.read_seconds, reading.write_seconds, reading.throttle.seconds) if reading else (0.0, 0.0, 0.0)
        return bottleneck(queued, elapsed, *waits)


def bottleneck(queued: float, elapsed: float, read: float, write: float, limit: float) -> pb.Bottleneck.ValueType:
    """Return what an attempt waited for most, from its seconds in the queue, in all, and in its stream."""
    if queued > elapsed:
        return pb.BOTTLENECK_QUEUE
    if limit > elapsed / 2:
        return pb.BOTTLENECK_LIMIT
    if read > 2 * write:
        return pb.BOTTLENECK_SOURCE
    return pb.BOTTLENECK_DESTINATION if write > 2 * read else pb.BOTTLENECK_NETWORK


def plan(
    attempt: Attempt,
    result: catalog_pb.FileResult,
    elements: Mapping[str, Element],
    measures: Mapping[tuple[str, str], Measure],
    failed: Sequence[str],
    offline: Collection[tuple[str, str]] = (),
    leaving: Collection[tuple[str, str]] = (),
) -> None:
    """Find out what to read; end the attempt if the file is there already, raise CopyFailed if it cannot get there."""
    file, row = result.file, attempt.row
    if result.HasField("error") or file.state != file_pb2.File.STATE_ACTIVE:
        raise CopyFailed(pb.TRANSFER_REASON_NO_SOURCE, "the file is not in the catalogue any more")
    destination = elements.get(row["destination"])
    if destination is None:
        raise CopyFailed(pb.TRANSFER_REASON_CONFIGURATION, f"there is no StorageElement {row['destination']}")
    if (file.uid, destination.id) in leaving:
        raise CopyFailed(pb.TRANSFER_REASON_DESTINATION, f"the replica at {destination.id} is being deleted first")
    there = [replica for replica in file.replicas if replica.storage_element == destination.id]
    if there and there[0].state == file_pb2.Replica.STATE_AVAILABLE:
        attempt.end(message="The file has a replica there already.")
        return
    if not destination.takes_files:
        raise CopyFailed(pb.TRANSFER_REASON_DESTINATION, f"{destination.id} is read-only")
    attempt.wanted = Wanted(file.size_bytes, file.checksums.adler32)
    attempt.copy = Copy(attempt.wanted)
    order = _readable(attempt, file, elements, measures, failed)
    attempt.candidates = [one for one in order if (file.uid, one[0].id) not in offline]
    if not attempt.candidates:
        raise CopyFailed(pb.TRANSFER_REASON_ON_TAPE, f"on tape at {order[0][0].id}, and not on disk now")


def _readable(
    attempt: Attempt,
    file: file_pb2.File,
    elements: Mapping[str, Element],
    measures: Mapping[tuple[str, str], Measure],
    failed: Sequence[str],
) -> list[Candidate]:
    allowed = set(sources_of(attempt.row)) or set(elements)
    destination = attempt.row["destination"]
    order = [
        candidate
        for candidate in nearest(file, elements, measures, destination=destination)
        if candidate[0].id in allowed and candidate[0].id != destination
    ]
    if not order:
        raise CopyFailed(pb.TRANSFER_REASON_NO_SOURCE, "no replica is left to read from")
    planned = ends(attempt.row["lane"])[0]
    # Its turn was on the lane of that source, so it comes first among those that have failed as often.
    return sorted(order, key=lambda one: (failed.count(one[0].id), one[0].id != planned))
