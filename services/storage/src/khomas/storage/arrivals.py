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
from khomas.storage import paths, staging
from khomas.storage.checksums import Sums
from khomas.storage.elements import Element, Protocols
from khomas.storage.errors import ChecksumMismatch, UploadIncomplete, UploadNotFound, UploadState
from khomas.storage.uploads import PREFIX, State, state_word

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
            paths.for_file(one.name)
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

    def free_paths(self, arrivals: Sequence[Arrival]) -> list[str]:
        """Return the path of each file on its StorageElement. Blocks."""
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
        if one.checksums.md5 and (md5 := staging.md5_of(path)) != one.checksums.md5:
            expected = f"md5 {one.checksums.md5}"
            raise ChecksumMismatch(name=one.upload, index=one.index, expected=expected, received=f"md5 {md5}")
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
