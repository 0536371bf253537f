"""Commits of uploads: intent, names on disk, catalogue, answer; every step can be done again.

A process may die after any step. Who asks again, or the loop `resume`, finds the intent and goes on: either all files
are in the catalogue, or the catalogue has refused and every name is taken back. The staged names stay until the end.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2, file_pb2
from khomas.api.common.v1 import checksum_pb2
from khomas.api.storage.v1 import storage_service_pb2
from khomas.kit.auth.principal import Principal
from khomas.kit.boundary.call import current_principal
from khomas.kit.errors import DomainError, FieldInvalid, UpstreamUnavailable
from khomas.kit.ids import new_uid
from khomas.storage import paths, staging
from khomas.storage.arrivals import Arrival, Arrivals
from khomas.storage.catalog import Catalog, derived_id, is_definite
from khomas.storage.elements import Element, Elements, Protocols
from khomas.storage.errors import ChecksumMismatch, UploadIncomplete
from khomas.storage.intents import Answer, Intent, Intents
from khomas.storage.staging import Placement
from khomas.storage.uploads import PREFIX, Uploads

log = logging.getLogger(__name__)

T = TypeVar("T")

_PLANS = 3
_LOOK_AGAIN_SECONDS = 0.1


class Commits:
    """Turns uploads into catalogued files."""

    def __init__(
        self,
        intents: Intents,
        uploads: Uploads,
        arrivals: Arrivals,
        elements: Elements,
        protocols: Protocols,
        catalog: Catalog,
        executor: Executor,
        *,
        fsync: bool,
        deadline: timedelta,
    ) -> None:
        self._intents = intents
        self._uploads = uploads
        self._arrivals = arrivals
        self._elements = elements
        self._protocols = protocols
        self._catalog = catalog
        self._executor = executor
        self._fsync = fsync
        self._deadline = deadline.total_seconds()

    async def commit(self, request: storage_service_pb2.BatchCommitUploadsRequest) -> Answer:
        """Commit files, all or nothing; the same request again gives the same answer."""
        principal = current_principal()
        key, digest = _request_key(principal, request.request_id), _digest(request)
        uids = list(dict.fromkeys(one.upload.removeprefix(PREFIX) for one in request.files))
        rows = await self._intents.uploads(uids)
        if any(row.commit_uid for row in rows):
            before = await self._intents.before(key, digest)
            if before is not None:
                return before[1] or await self._resumed(before[0].uid, key, digest)
        _check_twice(request)
        await self._check_datasets(request)
        elements = await self._elements.all()
        arrivals = await self._arrivals.verified(request.files, rows, elements, principal)
        return await self._committed(request, arrivals, elements, key, digest)

    async def resume(self) -> None:
        """Go on with what was left unfinished."""
        for intent in await self._intents.lease_unfinished():
            log.info("commit.resumed", extra={"commit": intent.uid, "files": len(intent.placements)})
            try:
                await self._finish(intent, await self._elements.all())
            except (DomainError, grpc.aio.AioRpcError, staging.Taken) as error:
                # Taken back, or still unknown; whoever asks again is told.
                log.warning("commit.unfinished", extra={"commit": intent.uid, "error": str(error)})

    async def _committed(
        self,
        request: storage_service_pb2.BatchCommitUploadsRequest,
        arrivals: Sequence[Arrival],
        elements: Mapping[str, Element],
        key: str,
        digest: bytes,
    ) -> Answer:
        for _ in range(_PLANS):
            places = await self._in_thread(partial(self._arrivals.free_paths, arrivals))
            intent = _intent(request, arrivals, places, key, digest)
            await self._intents.record(intent)
            try:
                return await self._finish(intent, elements)
            except staging.Taken:
                continue
        raise UpstreamUnavailable(
            "The names of these files are taken again and again by others; try again.", service="storage"
        )

    async def _resumed(self, uid: str, key: str, digest: bytes) -> Answer:
        """Finish what an earlier call began, or wait for whoever does."""
        elements = await self._elements.all()
        end = time.monotonic() + self._deadline
        while (before := await self._intents.before(key, digest)) is not None and time.monotonic() < end:
            intent, answer = before
            if answer is not None:
                return answer
            if await self._intents.lease(uid):
                return await self._finish(intent, elements)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        raise UpstreamUnavailable(
            "The commit is still under way, or was just taken back; ask again.", service="catalog"
        )

    async def _finish(self, intent: Intent, elements: Mapping[str, Element]) -> Answer:
        """Take all steps after the intent. Raises after taking it back, or with the intent kept: UNAVAILABLE."""
        try:
            await self._place(intent, elements)
            created = await self._catalog.create_files(intent.catalog_request)
        except UpstreamUnavailable:
            await self._intents.release(intent.uid)
            raise
        except (grpc.aio.AioRpcError, DomainError, staging.Taken, OSError):
            await self._take_back(intent, elements)
            raise
        await self._join_datasets(intent)
        answer = _answer(intent, created.uids)
        if created.existing:
            answer = await self._without_doubles(intent, answer, elements)
        await self._intents.finish(intent.uid, answer)
        await self._uploads.clear({(placement.upload, placement.storage_element) for placement in intent.placements})
        return answer

    async def _place(self, intent: Intent, elements: Mapping[str, Element]) -> None:
        def place() -> None:
            for placement, (staged, target) in self._names(intent, elements):
                try:
                    staging.place(staged, target, placement.stamp, flush=self._fsync)
                except staging.NotThere:
                    raise UploadIncomplete(name=PREFIX + placement.upload, index=placement.index) from None
                except staging.Changed:
                    raise ChecksumMismatch(
                        name=PREFIX + placement.upload, index=placement.index, expected="one", received="another"
                    ) from None

        await self._in_thread(place)

    async def _take_back(self, intent: Intent, elements: Mapping[str, Element]) -> None:
        def take_back() -> None:
            for _, (staged, target) in self._names(intent, elements):
                staging.take_back(staged, target)

        await self._in_thread(take_back)
        await self._intents.forget(intent.uid)

    async def _without_doubles(self, intent: Intent, answer: Answer, elements: Mapping[str, Element]) -> Answer:
        """Drop our copy of files that were catalogued before with a copy elsewhere, and answer with that one."""
        results = await self._catalog.files([f"files/{one.uid}" for one in answer.files])
        ours = list(self._names(intent, elements))
        doubles: list[tuple[Path, Path]] = []
        for one, result, (_, names) in zip(answer.files, results, ours, strict=True):
            replicas = [(replica.storage_element, replica.path) for replica in result.file.replicas]
            if replicas and (one.storage_element, one.path) not in replicas:
                doubles.append(names)
                one.storage_element, one.path = replicas[0]

        def take_back() -> None:
            for staged, target in doubles:
                staging.take_back(staged, target)

        await self._in_thread(take_back)
        return answer

    def _names(self, intent: Intent, elements: Mapping[str, Element]) -> Iterable[tuple[Placement, tuple[Path, Path]]]:
        """Yield for every file where it is staged and where it goes. Blocks."""
        for placement in intent.placements:
            element = elements[placement.storage_element]
            staged = self._protocols.local(element, paths.staging(placement.upload, placement.index))
            yield placement, (staged, self._protocols.local(element, placement.path))

    async def _check_datasets(self, request: storage_service_pb2.BatchCommitUploadsRequest) -> None:
        """Refuse before anything happens if a dataset that not all files join cannot take files."""
        for dataset, _ in _memberships(request.files):
            found = await self._catalog.dataset(dataset)
            if found.state != dataset_pb2.Dataset.STATE_OPEN:
                raise FieldInvalid.of("files.datasets", f"{dataset} is closed; leave it out or name another one")

    async def _join_datasets(self, intent: Intent) -> None:
        for dataset, names in intent.memberships:
            try:
                request_id = derived_id(intent.catalog_request.request_id, dataset)
                await self._catalog.add_to_dataset(dataset, names, request_id)
            except grpc.aio.AioRpcError as error:
                if not is_definite(error):
                    raise
                # It was open a moment ago, and the files are committed: there is no way back.
                log.exception("commit.membership_refused", extra={"dataset": dataset, "files": len(names)})

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action)


def _request_key(principal: Principal, request_id: str) -> str:
    return hashlib.sha256(repr((principal.issuer, principal.subject, request_id)).encode()).hexdigest()


def _digest(request: storage_service_pb2.BatchCommitUploadsRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _check_twice(request: storage_service_pb2.BatchCommitUploadsRequest) -> None:
    seen: set[tuple[str, int]] = set()
    for number, one in enumerate(request.files):
        if (one.upload, one.index) in seen:
            raise FieldInvalid.of(f"files[{number}].index", f"file {one.index} of {one.upload} is committed twice")
        seen.add((one.upload, one.index))


def _common_datasets(files: Sequence[storage_service_pb2.UploadCommit]) -> list[str]:
    common = set(files[0].datasets).intersection(*(one.datasets for one in files))
    return sorted(common)


def _memberships(files: Sequence[storage_service_pb2.UploadCommit]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the datasets that only some of the files join, with those files."""
    common = set(_common_datasets(files))
    members: dict[str, list[str]] = {}
    for one in files:
        for dataset in set(one.datasets) - common:
            members.setdefault(dataset, []).append(one.name)
    return [(dataset, tuple(names)) for dataset, names in sorted(members.items())]


def _intent(
    request: storage_service_pb2.BatchCommitUploadsRequest,
    arrivals: Sequence[Arrival],
    places: Sequence[str],
    key: str,
    digest: bytes,
) -> Intent:
    pairs = list(zip(arrivals, places, strict=True))
    return Intent(
        uid=new_uid(),
        request_key=key,
        request_digest=digest,
        placements=tuple(
            Placement(arrival.upload.uid, arrival.wanted.index, arrival.element.id, path, arrival.stamp)
            for arrival, path in pairs
        ),
        catalog_request=catalog_pb.BatchCreateFilesRequest(
            files=[_file(arrival, path, request.origin) for arrival, path in pairs],
            datasets=_common_datasets(request.files),
            request_id=derived_id(request.request_id, "catalog"),
        ),
        memberships=tuple(_memberships(request.files)),
    )


def _file(arrival: Arrival, path: str, origin: str) -> file_pb2.File:
    wanted, sums = arrival.wanted, arrival.sums
    return file_pb2.File(
        name=wanted.name,
        size_bytes=sums.size_bytes,
        checksums=checksum_pb2.Checksums(
            adler32=sums.adler32,
            sha256=sums.sha256,
            md5=wanted.checksums.md5,
            content_digest=sums.content_digest,
        ),
        metadata=wanted.metadata,
        parents=wanted.parents,
        origin=origin or arrival.upload.origin,
        replicas=[file_pb2.Replica(storage_element=arrival.element.id, path=path)],
    )


def _answer(intent: Intent, uids: Sequence[str]) -> Answer:
    files = zip(intent.catalog_request.files, uids, strict=True)
    return Answer(
        files=[
            storage_service_pb2.CommittedFile(
                name=file.name,
                uid=uid,
                size_bytes=file.size_bytes,
                checksums=file.checksums,
                storage_element=file.replicas[0].storage_element,
                path=file.replicas[0].path,
            )
            for file, uid in files
        ]
    )
