"""What the other services know of the things in a trace, in bulk calls."""

from collections.abc import Awaitable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.api.storage.v1 import rule_service_pb2 as rule_pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.rule_pb2 import ReplicationRule
from khomas.api.storage.v1.rule_service_pb2_grpc import RuleServiceStub
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.api.storage.v1.transfer_pb2 import Transfer
from khomas.kit.ids import is_uid

_AT_ONCE = 10_000
# An adoption may have made millions of files; so many are shown.
_FILES = 1000
# As many as a filter takes.
_RULES = 100
# Without this service the trace is shorter, but right.
_ABSENT = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)
_MISSING = (grpc.StatusCode.NOT_FOUND,)

Answer = TypeVar("Answer")


class Outside:
    """Asks the other services."""

    def __init__(
        self,
        catalog: CatalogServiceStub,
        scheduler: SchedulerServiceStub,
        storage: StorageServiceStub,
        rules: RuleServiceStub,
    ) -> None:
        self._catalog = catalog
        self._scheduler = scheduler
        self._storage = storage
        self._rules = rules

    async def files(self, names: Sequence[str]) -> list[File]:
        """Return those of the files that the catalogue has, by LFN or "files/{uid}"."""
        found = []
        for some in _chunks(names):
            request = catalog_pb.BatchGetFilesRequest(names=some, view=catalog_pb.FILE_VIEW_FULL)
            results = (await self._catalog.BatchGetFiles(request)).results
            found += [result.file for result in results if result.HasField("file")]
        return found

    async def files_of_origin(self, uid: str) -> tuple[list[str], bool]:
        """Return files that something made, and whether there are more."""
        return await self._some_files(catalog_pb.ListFilesRequest(filter=f'origin = "{uid}"'))

    async def files_of_dataset(self, name: str) -> tuple[list[str], bool]:
        """Return files of a dataset, and whether there are more."""
        return await self._some_files(catalog_pb.ListFilesRequest(dataset=name))

    async def _some_files(self, request: catalog_pb.ListFilesRequest) -> tuple[list[str], bool]:
        request.page_size, request.view = _FILES, catalog_pb.FILE_VIEW_BASIC
        answer = await self._catalog.ListFiles(request)
        return [file.name for file in answer.files], bool(answer.next_page_token)

    async def dataset(self, name: str) -> Dataset | None:
        """Return a dataset by its name, with or without the collection, or its uid."""
        if is_uid(name):
            listed = await self._catalog.ListDatasets(catalog_pb.ListDatasetsRequest(filter=f'uid = "{name}"'))
            return next(iter(listed.datasets), None)
        full = f"datasets/{name.removeprefix('datasets/')}"
        return await _unless(self._catalog.GetDataset(catalog_pb.GetDatasetRequest(name=full)), _MISSING)

    async def children(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of parent and child that the catalogue knows, one step down."""
        pairs: list[tuple[str, str]] = []
        for some in _chunks(names):
            request = catalog_pb.ListLineageRequest(
                names=some, direction=catalog_pb.ListLineageRequest.DIRECTION_DESCENDANTS, max_depth=1
            )
            pairs += [(edge.parent, edge.child) for edge in (await self._catalog.ListLineage(request)).edges]
        return pairs

    async def jobs(self, names: Sequence[str]) -> list[Job]:
        """Return those of the jobs that the scheduler has; none where there is no scheduler."""
        found = []
        for some in _chunks(names):
            request = scheduler_pb.BatchGetJobsRequest(names=some, full=True)
            answer = await _unless(self._scheduler.BatchGetJobs(request), _ABSENT)
            found += [result.job for result in answer.results if result.HasField("job")] if answer else []
        return found

    async def transfer(self, name: str) -> Transfer | None:
        """Return a transfer by its name or uid."""
        if not is_uid(uid := name.removeprefix("transfers/")):
            return None
        request = storage_pb.GetTransferRequest(name=f"transfers/{uid}")
        return await _unless(self._storage.GetTransfer(request), (*_ABSENT, *_MISSING))

    async def transfers(self, files: Iterable[File]) -> list[Transfer]:
        """Return the transfers that have made replicas of files, in the order of their creation."""
        by_name = {file.name: file for file in files}
        found: list[Transfer] = []
        for some in _chunks(by_name):
            request = storage_pb.ListTransfersRequest(files=some, filter="state = SUCCEEDED", page_size=1000)
            while answer := await _unless(self._storage.ListTransfers(request), _ABSENT):
                found += [one for one in answer.transfers if _copied(one, by_name[one.file])]
                if not answer.next_page_token:
                    break
                request.page_token = answer.next_page_token
        return found

    async def rules(self, uids: Sequence[str]) -> list[ReplicationRule]:
        """Return those replication rules that have these uids."""
        found: list[ReplicationRule] = []
        for some in _chunks([uid for uid in uids if is_uid(uid)], _RULES):
            either = " OR ".join(f'uid = "{uid}"' for uid in some)
            answer = await _unless(self._rules.ListRules(rule_pb.ListRulesRequest(filter=either)), _ABSENT)
            found += answer.rules if answer else []
        return found

    async def files_of_rule(self, name: str) -> tuple[list[str], bool]:
        """Return files that a rule wants copies of, and whether there are more."""
        request = rule_pb.ListRuleCopiesRequest(name=name, page_size=_FILES)
        answer = await self._rules.ListRuleCopies(request)
        return list(dict.fromkeys(copy.file for copy in answer.copies)), bool(answer.next_page_token)


async def _unless(call: Awaitable[Answer], codes: Collection[grpc.StatusCode]) -> Answer | None:
    """Return the answer, None where the call ends with one of these."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() not in codes:
            raise
    return None


def _copied(transfer: Transfer, file: File) -> bool:
    """Tell whether a transfer has made a copy of this file, which may not be the first one of its name."""
    ended = transfer.end_time.ToNanoseconds()
    # One that found a copy there ended as it began.
    return transfer.create_time.ToNanoseconds() < ended > file.create_time.ToNanoseconds()


def _chunks(names: Collection[str], size: int = _AT_ONCE) -> Iterator[list[str]]:
    every = list(names)
    return (every[start : start + size] for start in range(0, len(every), size))
