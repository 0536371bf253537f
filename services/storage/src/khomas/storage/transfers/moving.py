"""Moves a run of transfers to one StorageElement: many at once, verified in one question, named in one step.

The order is what a crash may interrupt anywhere: bytes under hidden names, verification, the names noted in the
database, the names, and only then the catalogue. What lies under a noted name is found again, all else is tidied away.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.errors import DomainError
from khomas.storage import paths
from khomas.storage.checksums import Algorithm
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.landing import Landing, Landings, digest, discard_all, publish_all, verify_all
from khomas.storage.links.bucket import Throttle
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.reading import Source
from khomas.storage.transfers.attempts import Attempt
from khomas.storage.transfers.copying import CopyFailed, destination_reason, destination_side, published
from khomas.storage.transfers.queue import Queue

log = logging.getLogger(__name__)

# Small files of one run that are on their way at once: one alone would wait for answers most of the time.
_AT_ONCE: Final = 8
_TAKEN: Final = frozenset({Problem.TAKEN, Problem.ABSENT})
Move = tuple[Attempt, Landing]
Throttled = Callable[[str, str], Throttle]


@dataclass(frozen=True, slots=True)
class Moving:
    """Streams files, or lets storages do it that can."""

    queue: Queue
    protocols: Protocols
    landings: Landings
    # Gives the bounds for a stream between two StorageElements.
    throttle: Throttled

    async def run(self, attempts: Sequence[Attempt], destination: Element) -> None:
        """Bring files there; every attempt has ended then, or its copy lies under its own name."""
        left = await self._absent(attempts, destination)
        moves: list[Move] = []
        try:
            for attempt in left:
                with ending(attempt):
                    with destination_side():
                        landing = await self.landings.begin(self.protocols.of(destination))
                    moves.append((attempt, landing))
            await at_once(self._copied, moves, _AT_ONCE)
            await self.land(moves)
        finally:
            await asyncio.shield(discard_all([landing for _, landing in moves]))

    async def land(self, moves: Sequence[Move]) -> None:
        """Verify what has arrived and give it its names."""
        await self._verify([move for move in moves if move[0].ended is None])
        await self._publish([move for move in moves if move[0].ended is None])

    async def _absent(self, attempts: Sequence[Attempt], destination: Element) -> list[Attempt]:
        """Return those whose copy no earlier attempt has got there without being able to tell anybody."""
        left = []
        for attempt in attempts:
            with ending(attempt):
                protocol = self.protocols.of(destination)
                if attempt.row["path"] and await self._arrived_before(attempt, protocol):
                    attempt.copied = attempt.wanted
                else:
                    left.append(attempt)
        return left

    async def _arrived_before(self, attempt: Attempt, protocol: StorageProtocol) -> bool:
        path, wanted = attempt.row["path"], attempt.wanted
        attempt.path = path
        try:
            found = await digest(protocol, path, {Algorithm.ADLER32: wanted.adler32})
        except ProtocolFault as fault:
            if fault.problem is Problem.ABSENT:
                return False
            # Copied again without an answer, it might lie there twice.
            raise
        return (found.size_bytes, found.value) == (wanted.size_bytes, wanted.adler32)

    async def _copied(self, move: Move) -> None:
        attempt, landing = move
        with ending(attempt):
            first, *others = [
                Source(element.id, self.protocols.of(element), replica.path) for element, replica in attempt.candidates
            ]
            # An attempt after the first reads one copy: then a wrong checksum says which one is wrong.
            await _in_time(
                attempt,
                attempt.copy.run(
                    first.protocol,
                    first.path,
                    landing,
                    others=others if attempt.row["attempt"] == 1 else (),
                    throttle=self.throttle(first.element, attempt.row["destination"]),
                    verify=False,
                ),
            )

    async def _verify(self, moves: Sequence[Move]) -> None:
        sent = [
            (landing, attempt.wanted.size_bytes, attempt.copy.unverified)
            for attempt, landing in moves
            if attempt.copy.unverified is not None
        ]
        faults = {landing.hidden: fault for (landing, _, _), fault in zip(sent, await verify_all(sent), strict=True)}
        for attempt, landing in moves:
            if (fault := faults.get(landing.hidden)) is not None:
                attempt.end(destination_reason(fault), fault.message)

    async def _publish(self, moves: Sequence[Move]) -> None:
        """Give copies their names. They are noted first: a crash must leave nothing unknown."""
        named = {attempt.uid: paths.for_file(attempt.row["file"]) for attempt, _ in moves}
        ours = await self.queue.note_paths({move[0].uid: (move[0].epoch, named[move[0].uid]) for move in moves})
        for attempt, _ in moves:
            if attempt.uid not in ours:
                attempt.end(pb.TRANSFER_REASON_CANCELLED, "the transfer was taken back or taken over")
        moves = [move for move in moves if move[0].ended is None]
        faults = await publish_all([(landing, named[attempt.uid]) for attempt, landing in moves]) if moves else []
        for (attempt, landing), fault in zip(moves, faults, strict=True):
            with ending(attempt):
                attempt.path = named[attempt.uid]
                if fault is not None:
                    if fault.problem not in _TAKEN:
                        raise CopyFailed(destination_reason(fault), fault.message)
                    await self._taken(attempt, landing)
                attempt.copied = attempt.wanted

    async def _taken(self, attempt: Attempt, landing: Landing) -> None:
        """Find out by whom: an earlier attempt may have got its copy there, which was read wrongly when we began."""
        if attempt.row["path"] != attempt.path or not await self._arrived_before(attempt, landing.protocol):
            await self._publish_beside(attempt, landing)

    async def _publish_beside(self, attempt: Attempt, landing: Landing) -> None:
        wanted, uid = attempt.path, attempt.uid
        for path in (paths.beside(wanted, uid), paths.apart(wanted, uid)):
            if not await self.queue.note_paths({uid: (attempt.epoch, path)}):
                raise CopyFailed(pb.TRANSFER_REASON_CANCELLED, "the transfer was taken back or taken over")
            if await published(landing, path):
                attempt.path = path
                return
        raise CopyFailed(pb.TRANSFER_REASON_DESTINATION, f"{wanted} and the names beside it are taken")


class ending:  # noqa: N801  reads as a statement
    """End an attempt with what is raised in the block."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Take every failure that is no cancellation."""
        if error is None or not isinstance(error, Exception):
            return False
        self._attempt.end(*reason_of(error, self._attempt))
        return True


def reason_of(error: Exception, attempt: Attempt) -> tuple[pb.TransferReason.ValueType, str]:
    """Return an error in the words of transfers."""
    if isinstance(error, CopyFailed):
        return error.reason, error.message
    if isinstance(error, ProtocolFault):
        return destination_reason(error), error.message
    if isinstance(error, DomainError):
        return pb.TRANSFER_REASON_CONFIGURATION, error.message
    log.error("transfer.broken", extra={"transfer": attempt.uid}, exc_info=error)
    return pb.TRANSFER_REASON_TRANSIENT, f"{type(error).__name__}: {error}"


async def _in_time(attempt: Attempt, work: Awaitable[None]) -> None:
    deadline = attempt.row["deadline"]
    seconds = (deadline - datetime.now(UTC)).total_seconds() if deadline is not None else None
    try:
        async with asyncio.timeout(seconds) as limit:
            await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise CopyFailed(pb.TRANSFER_REASON_DEADLINE, "its deadline has passed") from error


async def at_once(action: Callable[[Move], Awaitable[None]], moves: Sequence[Move], most: int) -> None:
    """Do it to all, so many at a time."""
    left = iter(moves)

    async def worker() -> None:
        for move in left:
            await action(move)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(most, len(moves))):
            group.create_task(worker())
