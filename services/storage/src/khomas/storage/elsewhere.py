"""Files of uploads on storages that are no local disk: staged under a hidden name, verified there, then named.

A step may have been done before, by a process that died before it could note that. Who takes it `again` looks first.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from khomas.kit.errors import UpstreamUnavailable
from khomas.storage.checksums import Algorithm, Summing, Sums, new_hash
from khomas.storage.errors import StorageElementUnreachable
from khomas.storage.landing import Landing, Landings, Wanted, publish_all, verify_all
from khomas.storage.paths import apart, beside
from khomas.storage.protocols.interface import Entry, Kind, Problem, ProtocolFault, StorageProtocol
from khomas.storage.uploads import staging

log = logging.getLogger(__name__)

# What may be gone when somebody asks again.
_PASSING: Final = (Problem.PASSING, Problem.UNREACHABLE, Problem.CREDENTIAL)


@dataclass(frozen=True, slots=True)
class Move:
    """One staged file and the name that it gets."""

    staged: str
    target: str
    size_bytes: int
    adler32: str


async def stage(
    landings: Landings, protocol: StorageProtocol, blocks: AsyncGenerator[memoryview, None], wanted: Wanted
) -> tuple[str, Sums]:
    """Write a file under a hidden name and verify it there; return the name and the checksums.

    Raises SourceFailed, SourceDiffers, or a ProtocolFault of the storage; nothing is left then.
    """
    summing = Summing(sha256=True)

    async def summed() -> AsyncGenerator[memoryview, None]:
        async for block in blocks:
            summing.add(block)
            yield block

    async with await landings.begin(protocol) as landing:
        await landing.take(summed(), wanted)
        # It stays, hidden: the upload knows of it.
        landing.published = True
    return landing.hidden, summing.sums


async def sizes(protocol: StorageProtocol, staged: Sequence[str], name: str) -> list[int | None]:
    """Return the size of each staged file, None where there is none; raise if the storage does not answer."""
    found = await protocol.stat(staged)
    for one in found:
        if isinstance(one, ProtocolFault) and one.problem is not Problem.ABSENT:
            raise unreachable(name, one)
    return [one.size_bytes if isinstance(one, Entry) and one.kind is Kind.FILE else None for one in found]


async def md5_of(protocol: StorageProtocol, path: str, name: str) -> str:
    """Return the MD5, for comparison with what an older system gave."""
    found = new_hash(Algorithm.MD5)
    try:
        async with aclosing(protocol.get(path)) as blocks:
            async for block in blocks:
                found.update(block)
    except ProtocolFault as fault:
        raise unreachable(name, fault) from fault
    return found.hexdigest()


async def free_paths(
    protocol: StorageProtocol, wanted: Sequence[tuple[str, str]], name: str, attempt: int
) -> list[str]:
    """Return a path for each wanted path and uid of its upload: beside it, and then apart, when it is taken."""
    found = await protocol.stat([path for path, _ in wanted]) if attempt == 0 else [None] * len(wanted)
    taken: set[str] = set()
    paths: list[str] = []
    for (path, uid), there in zip(wanted, found, strict=True):
        if isinstance(there, ProtocolFault) and there.problem in _PASSING:
            raise unreachable(name, there)
        choices = [path, beside(path, uid), apart(path, uid), apart(f"{len(taken)}-{path.rpartition('/')[2]}", uid)]
        free = isinstance(there, ProtocolFault) and there.problem is Problem.ABSENT
        # An upload may have been tried before; then the plain name is taken, or something is in its way.
        first = attempt or (0 if free else 1)
        paths.append(next(one for one in choices[min(first, 2) :] if one not in taken))
        taken.add(paths[-1])
    return paths


async def place(protocol: StorageProtocol, moves: Sequence[Move], name: str, *, again: bool) -> None:
    """Give staged files their names. Raises staging.Taken, staging.NotThere, or why the storage does not do it."""
    left = await _unplaced(protocol, moves, name) if again else list(moves)
    landings = Landings()
    named = [(Landing(protocol, landings, move.staged), move.target) for move in left]
    faults = [fault for fault in await publish_all(named) if fault is not None] if named else []
    if not faults:
        return
    worst = min(faults, key=lambda fault: fault.problem is not Problem.TAKEN)
    if worst.problem is Problem.TAKEN:
        raise staging.Taken
    if None in await sizes(protocol, [move.staged for move in left], name) and worst.problem is Problem.ABSENT:
        raise staging.NotThere
    raise unreachable(name, worst)


async def take_back(protocol: StorageProtocol, moves: Sequence[Move]) -> None:
    """Give files their hidden names again where `place` was done; what cannot be taken back is logged."""
    staged = await protocol.stat([move.staged for move in moves])
    gone = [
        move
        for move, found in zip(moves, staged, strict=True)
        if isinstance(found, ProtocolFault) and found.problem is Problem.ABSENT
    ]
    back = [move for move, placed in zip(gone, await _there(protocol, gone), strict=True) if placed]
    faults = await protocol.rename([(move.target, move.staged) for move in back]) if back else []
    for move, fault in zip(back, faults, strict=True):
        if fault is not None:
            log.error("upload.not_taken_back", extra={"path": move.target, "error": fault.message})


async def remove(protocol: StorageProtocol, paths: Sequence[str]) -> None:
    """Delete files; gone already is no fault, and what stays is tidied away later."""
    faults = await protocol.delete(paths) if paths else []
    for path, fault in zip(paths, faults, strict=True):
        if fault is not None:
            log.warning("upload.left_behind", extra={"path": path, "error": fault.message})


async def _unplaced(protocol: StorageProtocol, moves: Sequence[Move], name: str) -> list[Move]:
    """Return what a process that died has not done, and finish what it has done by half."""
    staged = await sizes(protocol, [move.staged for move in moves], name)
    placed = await _there(protocol, moves)
    # Where a name is given by a copy, both may be there.
    await remove(
        protocol,
        [move.staged for move, size, done in zip(moves, staged, placed, strict=True) if done and size is not None],
    )
    return [move for move, done in zip(moves, placed, strict=True) if not done]


async def _there(protocol: StorageProtocol, moves: Sequence[Move]) -> list[bool]:
    """Tell of each file whether it has its name: something is there that has its size and checksum."""
    found = await protocol.stat([move.target for move in moves])
    alike = [
        move
        for move, entry in zip(moves, found, strict=True)
        if isinstance(entry, Entry) and entry.size_bytes == move.size_bytes
    ]
    landings = Landings()
    faults = await verify_all(
        [(Landing(protocol, landings, one.target), one.size_bytes, {Algorithm.ADLER32: one.adler32}) for one in alike]
    )
    same = {move.target for move, fault in zip(alike, faults, strict=True) if fault is None}
    return [move.target in same for move in moves]


def unreachable(name: str, fault: ProtocolFault) -> UpstreamUnavailable | StorageElementUnreachable:
    """Return what to tell of a storage that does not do what it should."""
    if fault.problem in _PASSING:
        return UpstreamUnavailable(f"The StorageElement {name} does not answer: {fault.message}", service=name)
    return StorageElementUnreachable(storage_element=name, message=fault.message)
