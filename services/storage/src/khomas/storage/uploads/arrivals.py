"""What the files of a commit are: compared with what was announced, and where they go."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from khomas.api.storage.v1 import storage_service_pb2
from khomas.kit.auth.principal import Principal, allows
from khomas.storage import elsewhere, paths
from khomas.storage.checksums import Sums
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.errors import ChecksumMismatch, UploadIncomplete, UploadNotFound, UploadState
from khomas.storage.uploads import staging
from khomas.storage.uploads.uploads import PREFIX, State, state_word

_BATCH = 100


@dataclass(frozen=True, slots=True)
class Arrival:
    """One file of a commit that is as announced."""

    wanted: storage_service_pb2.UploadCommit
    upload: Row[Any]
    element: Element
    sums: Sums
    stamp: str


class Arrivals:
    """Looks at staged files."""

    def __init__(self, protocols: Protocols, executor: Executor, sha256_limit_bytes: int) -> None:
        self._protocols = protocols
        self._executor = executor
        self._sha256_limit_bytes = sha256_limit_bytes

    async def verified(
        self,
        files: Sequence[storage_service_pb2.UploadCommit],
        rows: Sequence[Row[Any]],
        elements: Mapping[str, Element],
        principal: Principal,
    ) -> list[Arrival]:
        """Return every file with its checksums, or raise what is wrong with the first one that is wrong."""
        uploads = {
            PREFIX + row.uid: row for row in rows if row.owner == principal.subject or allows(principal, "admin")
        }
        received = {(PREFIX + row.uid, row.number): row for row in rows if row.number is not None}
        for one in files:
            _check_open(one, uploads)
            paths.for_new_file(one.name)
        by_name = {name: elements[row.storage_element] for name, row in uploads.items()}
        local = {name: self._protocols.is_local(element) for name, element in by_name.items()}
        found = await self._here([one for one in files if local[one.upload]], uploads, received, elements)
        there = [one for one in files if not local[one.upload]]
        found += await self._elsewhere(there, uploads, received, by_name)
        order = {(one.upload, one.index): number for number, one in enumerate(files)}
        return sorted(found, key=lambda arrival: order[arrival.wanted.upload, arrival.wanted.index])

    async def _here(
        self,
        files: Sequence[storage_service_pb2.UploadCommit],
        uploads: Mapping[str, Row[Any]],
        received: Mapping[tuple[str, int], Row[Any]],
        elements: Mapping[str, Element],
    ) -> list[Arrival]:
        loop = asyncio.get_running_loop()
        batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
        looks = [
            loop.run_in_executor(self._executor, self._batch, batch, uploads, received, elements) for batch in batches
        ]
        try:
            return [arrival for batch in await asyncio.gather(*looks) for arrival in batch]
        finally:
            for look in looks:
                look.cancel()

    async def _elsewhere(
        self,
        files: Sequence[storage_service_pb2.UploadCommit],
        uploads: Mapping[str, Row[Any]],
        received: Mapping[tuple[str, int], Row[Any]],
        by_name: Mapping[str, Element],
    ) -> list[Arrival]:
        """Look at what was verified when it came: nobody else can reach it under its hidden name."""
        for one in files:
            if (one.upload, one.index) not in received:
                raise UploadIncomplete(name=one.upload, index=one.index)
        arrivals = [
            _received(one, uploads[one.upload], received[one.upload, one.index], by_name[one.upload]) for one in files
        ]
        for element, some in _by_element(arrivals):
            protocol = self._protocols.of(element)
            there = await elsewhere.sizes(protocol, [arrival.stamp for arrival in some], element.id)
            for arrival, size_bytes in zip(some, there, strict=True):
                if size_bytes != arrival.sums.size_bytes:
                    raise UploadIncomplete(name=arrival.wanted.upload, index=arrival.wanted.index)
                if md5 := arrival.wanted.checksums.md5:
                    _same_md5(arrival.wanted, await elsewhere.md5_of(protocol, arrival.stamp, element.id), md5)
        return arrivals

    async def free_paths(self, arrivals: Sequence[Arrival], attempt: int) -> list[str]:
        """Return the path of each file on its StorageElement; at every attempt another one where that was taken."""
        here = [arrival for arrival in arrivals if self._protocols.is_local(arrival.element)]
        loop = asyncio.get_running_loop()
        found = dict(
            zip(map(_key, here), await loop.run_in_executor(self._executor, self._free_here, here), strict=True)
        )
        for element, some in _by_element([one for one in arrivals if _key(one) not in found]):
            wanted = [(paths.for_file(arrival.wanted.name), arrival.upload.uid) for arrival in some]
            free = await elsewhere.free_paths(self._protocols.of(element), wanted, element.id, attempt)
            found |= dict(zip(map(_key, some), free, strict=True))
        return [found[_key(arrival)] for arrival in arrivals]

    def _free_here(self, arrivals: Sequence[Arrival]) -> list[str]:
        taken: dict[str, set[str]] = {}
        return [
            staging.free_path(
                partial(self._protocols.local, arrival.element),
                paths.for_file(arrival.wanted.name),
                arrival.upload.uid,
                taken.setdefault(arrival.element.id, set()),
            )
            for arrival in arrivals
        ]

    def _batch(
        self,
        files: Sequence[storage_service_pb2.UploadCommit],
        uploads: Mapping[str, Row[Any]],
        received: Mapping[tuple[str, int], Row[Any]],
        elements: Mapping[str, Element],
    ) -> list[Arrival]:
        return [
            self._arrival(
                one,
                uploads[one.upload],
                received.get((one.upload, one.index)),
                elements[uploads[one.upload].storage_element],
            )
            for one in files
        ]

    def _arrival(
        self,
        one: storage_service_pb2.UploadCommit,
        upload: Row[Any],
        received: Row[Any] | None,
        element: Element,
    ) -> Arrival:
        path = self._protocols.local(element, paths.staging(upload.uid, one.index))
        try:
            stamp = staging.stamp_of(path)
        except staging.NotThere:
            raise UploadIncomplete(name=one.upload, index=one.index) from None
        if path.stat().st_nlink > 1:
            # Whoever writes to the other name would change the committed bytes.
            message = f"File {one.index} of {one.upload} is a hard link to another file; place a copy of it."
            raise UploadIncomplete(message, name=one.upload, index=one.index)
        sums = self._sums(path, one, received if received is not None and received.stamp == stamp else None)
        _compare(one, sums)
        if one.checksums.md5:
            _same_md5(one, staging.md5_of(path), one.checksums.md5)
        if not sums.content_digest:
            sums = staging.with_digest(sums, path, one.name)
        if staging.stamp_of(path) != stamp:
            raise ChecksumMismatch(name=one.upload, index=one.index, expected="one content", received="a changing one")
        return Arrival(one, upload, element, sums, stamp)

    def _sums(self, path: Path, one: storage_service_pb2.UploadCommit, received: Row[Any] | None) -> Sums:
        """Take the checksums of the door; what did not come through it, or was changed since, is read."""
        if received is not None:
            sums = Sums(received.size_bytes, received.adler32, received.sha256)
        else:
            small = path.stat().st_size <= self._sha256_limit_bytes
            sums = staging.sums_of(path, sha256=small or bool(one.checksums.sha256))
        return replace(sums, content_digest=one.checksums.content_digest)


def _key(arrival: Arrival) -> tuple[str, int]:
    return arrival.upload.uid, arrival.wanted.index


def _by_element(arrivals: Sequence[Arrival]) -> list[tuple[Element, list[Arrival]]]:
    found: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        found.setdefault(arrival.element.id, []).append(arrival)
    return [(some[0].element, some) for some in found.values()]


def _received(one: storage_service_pb2.UploadCommit, upload: Row[Any], received: Row[Any], element: Element) -> Arrival:
    sums = Sums(received.size_bytes, received.adler32, received.sha256, one.checksums.content_digest)
    _compare(one, sums)
    return Arrival(one, upload, element, sums, received.stamp)


def _same_md5(one: storage_service_pb2.UploadCommit, found: str, wanted: str) -> None:
    if found != wanted:
        raise ChecksumMismatch(name=one.upload, index=one.index, expected=f"md5 {wanted}", received=f"md5 {found}")


def _check_open(one: storage_service_pb2.UploadCommit, uploads: Mapping[str, Row[Any]]) -> None:
    row = uploads.get(one.upload)
    if row is None:
        raise UploadNotFound(name=one.upload)
    if row.state != State.STATE_OPEN or row.commit_uid is not None:
        raise UploadState(name=one.upload, state=state_word(row))
    if one.index >= row.max_files:
        raise UploadIncomplete(name=one.upload, index=one.index)


def _compare(one: storage_service_pb2.UploadCommit, sums: Sums) -> None:
    announced = {
        f"{one.size_bytes} bytes": one.size_bytes < 0 or one.size_bytes == sums.size_bytes,
        f"adler32 {one.checksums.adler32}": one.checksums.adler32 in ("", sums.adler32),
        f"sha256 {one.checksums.sha256}": one.checksums.sha256 in ("", sums.sha256),
    }
    for expected, equal in announced.items():
        if not equal:
            received = f"{sums.size_bytes} bytes, adler32 {sums.adler32}" + (
                f", sha256 {sums.sha256}" if sums.sha256 else ""
            )
            raise ChecksumMismatch(name=one.upload, index=one.index, expected=expected, received=received)
