"""Commits of uploads: intent, names on disk, catalogue, answer; every step can be done again.

A process may die after any step. Who asks again, or the loop `resume`, finds the intent and goes on: either all files
are in the catalogue, or the catalogue has refused and every name is taken back. The staged names stay until the end.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
from sqlalchemy import Row

from khomas.api.catalog.v1 import dataset_pb2
from khomas.api.storage.v1 import storage_service_pb2
from khomas.kit.boundary.call import current_owner, current_principal
from khomas.kit.errors import DomainError, FieldInvalid, UpstreamUnavailable
from khomas.kit.ids import new_uid
from khomas.storage.catalog import Catalog, derived_id, is_definite
from khomas.storage.elements.elements import Element, Elements
from khomas.storage.uploads import staging
from khomas.storage.uploads.arrivals import Arrival, Arrivals
from khomas.storage.uploads.intents import Answer, Asked, Intent, Intents
from khomas.storage.uploads.placing import Placing
from khomas.storage.uploads.planning import answered, check_twice, memberships, planned
from khomas.storage.uploads.uploads import PREFIX, Uploads

log = logging.getLogger(__name__)

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
        placing: Placing,
        catalog: Catalog,
        *,
        deadline: timedelta,
    ) -> None:
        self._intents = intents
        self._uploads = uploads
        self._arrivals = arrivals
        self._elements = elements
        self._placing = placing
        self._catalog = catalog
        self._deadline = deadline.total_seconds()

    async def commit(self, request: storage_service_pb2.BatchCommitUploadsRequest) -> Answer:
        """Commit files, all or nothing; the same request again gives the same answer."""
        principal = current_principal()
        current_owner(request.owner)
        asked = Asked.of(principal, request)
        uids = list(dict.fromkeys(one.upload.removeprefix(PREFIX) for one in request.files))
        rows = await self._intents.uploads(uids)
        if any(row.commit_uid for row in rows) and await self._intents.before(asked) is not None:
            return await self._resumed(asked)
        check_twice(request)
        await self._check_datasets(request)
        elements = await self._elements.all()
        try:
            arrivals = await self._arrivals.verified(request.files, rows, elements, principal)
        except DomainError:
            # The same request may have come twice at once, and the other one has placed the files meanwhile.
            if await self._intents.before(asked) is None:
                raise
            return await self._resumed(asked)
        return await self._committed(asked, request, arrivals, elements, rows)

    async def resume(self) -> None:
        """Go on with what was left unfinished."""
        await asyncio.gather(*map(self._resume, await self._intents.lease_unfinished()))

    async def _resume(self, intent: Intent) -> None:
        log.info("commit.resumed", extra={"commit": intent.uid, "files": len(intent.placements)})
        try:
            await self._finish(intent, await self._elements.all(), again=True)
        except (DomainError, grpc.aio.AioRpcError, staging.Taken) as error:
            # Taken back, or still unknown; whoever asks again is told.
            log.warning("commit.unfinished", extra={"commit": intent.uid, "error": str(error)})
        except Exception:
            # The others must not wait for what is wrong with this one.
            log.exception("commit.failed", extra={"commit": intent.uid})

    async def _committed(
        self,
        asked: Asked,
        request: storage_service_pb2.BatchCommitUploadsRequest,
        arrivals: Sequence[Arrival],
        elements: Mapping[str, Element],
        rows: Sequence[Row[Any]],
    ) -> Answer:
        for attempt in range(_PLANS):
            places = await self._arrivals.free_paths(arrivals, attempt)
            intent = planned(new_uid(), asked, request, arrivals, places)
            if not await self._intents.record(intent, asked):
                return await self._resumed(asked)
            try:
                return await self._finish(intent, elements, again=False, rows=rows)
            except staging.Taken:
                continue
        raise UpstreamUnavailable("Others take the names of these files again and again; try again.", service="storage")

    async def _resumed(self, asked: Asked) -> Answer:
        """Return what an earlier call has answered; finish what it has begun, or wait for whoever does."""
        elements = await self._elements.all()
        end = time.monotonic() + self._deadline
        while (before := await self._intents.before(asked)) is not None and time.monotonic() < end:
            intent, answer = before
            if answer is not None:
                return answer
            with suppress(staging.Taken):
                if await self._intents.lease(intent.uid):
                    return await self._finish(intent, elements, again=True)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        raise UpstreamUnavailable(
            "The commit is still under way, or was just taken back; ask again.", service="catalog"
        )

    async def _finish(
        self, intent: Intent, elements: Mapping[str, Element], *, again: bool, rows: Sequence[Row[Any]] | None = None
    ) -> Answer:
        """Take all steps after the intent. Raises after taking it back, or with the intent kept: UNAVAILABLE."""
        try:
            answer = await self._catalogued(intent, elements, again=again)
        except UpstreamUnavailable:
            await self._intents.release(intent.uid)
            raise
        await self._intents.finish(intent.uid, answer)
        uploads = {(placement.upload, placement.storage_element) for placement in intent.placements}
        await self._uploads.clear(uploads, rows, {placement.stamp for placement in intent.placements})
        return answer

    async def _catalogued(self, intent: Intent, elements: Mapping[str, Element], *, again: bool) -> Answer:
        try:
            await self._placing.place(intent, elements, again=again)
            created = await self._catalog.create_files(intent.catalog_request)
        except UpstreamUnavailable:
            raise
        except (grpc.aio.AioRpcError, DomainError, staging.Taken, OSError):
            await self._placing.take_back(intent, elements)
            await self._intents.forget(intent.uid)
            raise
        await self._join_datasets(intent)
        answer = answered(intent, created.uids)
        return await self._without_doubles(intent, answer, elements) if created.existing else answer

    async def _without_doubles(self, intent: Intent, answer: Answer, elements: Mapping[str, Element]) -> Answer:
        """Drop our copy of files that were catalogued before with a copy elsewhere, and answer with that one."""
        results = await self._catalog.files([f"files/{one.uid}" for one in answer.files])
        doubles: list[int] = []
        for number, (one, result) in enumerate(zip(answer.files, results, strict=True)):
            replicas = [(replica.storage_element, replica.path) for replica in result.file.replicas]
            if replicas and (one.storage_element, one.path) not in replicas:
                doubles.append(number)
                one.storage_element, one.path = replicas[0]
        await self._placing.drop(intent, doubles, elements)
        return answer

    async def _check_datasets(self, request: storage_service_pb2.BatchCommitUploadsRequest) -> None:
        """Refuse before anything happens if a dataset that not all files join cannot take files."""
        for dataset, _ in memberships(request.files):
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
