"""What the catalogue and the scheduler know of the things in a trace, in bulk calls."""

from collections.abc import Collection, Iterator, Sequence

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

_AT_ONCE = 10_000
# An adoption may have made millions of files; so many are shown.
_OF_ORIGIN = 1000
# Without this service the trace is shorter, but right.
_ABSENT = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)


class Outside:
    """Asks the other services."""

    def __init__(self, catalog: CatalogServiceStub, scheduler: SchedulerServiceStub) -> None:
        self._catalog = catalog
        self._scheduler = scheduler

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
        request = catalog_pb.ListFilesRequest(
            filter=f'origin = "{uid}"', page_size=_OF_ORIGIN, view=catalog_pb.FILE_VIEW_BASIC
        )
        answer = await self._catalog.ListFiles(request)
        return [file.name for file in answer.files], bool(answer.next_page_token)

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
        try:
            for some in _chunks(names):
                request = scheduler_pb.BatchGetJobsRequest(names=some, full=True)
                results = (await self._scheduler.BatchGetJobs(request)).results
                found += [result.job for result in results if result.HasField("job")]
        except grpc.aio.AioRpcError as error:
            if error.code() not in _ABSENT:
                raise
        return found


def _chunks(names: Collection[str]) -> Iterator[list[str]]:
    every = list(names)
    return (every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE))
