"""What the storage asks of the catalogue, and what its answers mean."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import catalog_service_pb2_grpc, dataset_pb2
from khomas.kit.errors import UpstreamUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 1000
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
# After these nobody knows whether the call had an effect, or it had none and may have one the next time.
_UNKNOWN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        # Overloaded, or the disk of the catalogue is full: passing, too.
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        # A fault of our own token, which operators mend; not a verdict on the request.
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


def derived_id(request: str, purpose: str) -> str:
    """Return the request_id for one step of another request, the same at every try."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{request} {purpose}"))


def is_definite(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether the catalogue has refused for good, so that nothing has changed and nothing will."""
    return error.code() not in _UNKNOWN


class Catalog:
    """The catalogue's rpcs with deadline and repetition; every write here carries a request_id."""

    def __init__(self, channel: grpc.aio.Channel, deadline: timedelta) -> None:
        self.stub = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        self._deadline = deadline.total_seconds()

    async def create_files(self, request: pb.BatchCreateFilesRequest) -> pb.BatchCreateFilesResponse:
        """Commit files."""
        return await self._repeated(lambda left: self.stub.BatchCreateFiles(request, timeout=left))

    async def update_replicas(self, updates: Iterable[pb.ReplicaUpdate], request_id: str) -> None:
        """Change replicas, all or nothing."""
        request = pb.BatchUpdateReplicasRequest(updates=updates, request_id=request_id)
        await self._repeated(lambda left: self.stub.BatchUpdateReplicas(request, timeout=left))

    async def note_replicas(self, updates: Sequence[pb.ReplicaUpdate]) -> None:
        """Change replicas, in one call if all can be; those of files that are gone by now are left out."""
        if not updates:
            return
        try:
            await self.update_replicas(updates, str(uuid.uuid4()))
        except grpc.aio.AioRpcError as error:
            if len(updates) > 1:
                half = len(updates) // 2
                await self.note_replicas(updates[:half])
                await self.note_replicas(updates[half:])
            else:
                log.warning("replica.refused", extra={"file": updates[0].name, "error": error.details()})

    async def add_to_dataset(self, dataset: str, names: Sequence[str], request_id: str) -> None:
        """Make files members of a dataset."""
        request = pb.UpdateDatasetFilesRequest(name=dataset, add=names, request_id=request_id)
        await self._repeated(lambda left: self.stub.UpdateDatasetFiles(request, timeout=left))

    async def list_files(self, request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        """Read one page of files."""
        return await self._repeated(lambda left: self.stub.ListFiles(request, timeout=left))

    async def dataset(self, name: str) -> dataset_pb2.Dataset:
        """Read a dataset."""
        return await self._repeated(lambda left: self.stub.GetDataset(pb.GetDatasetRequest(name=name), timeout=left))

    async def files(self, names: Sequence[str]) -> list[pb.FileResult]:
        """Read files with their replicas, by LFN or "files/{uid}", in the order of the names."""
        results: list[pb.FileResult] = []
        for start in range(0, len(names), 10 * _CHUNK):
            chunk = names[start : start + 10 * _CHUNK]
            request = pb.BatchGetFilesRequest(names=chunk, view=pb.FILE_VIEW_REPLICAS)
            answer = await self._repeated(
                lambda left, request=request: self.stub.BatchGetFiles(request, timeout=left)  # type: ignore[misc]
            )
            results.extend(answer.results)
        return results

    async def at_paths(self, element: str, paths: Sequence[str]) -> list[pb.LocatedFile]:
        """Read what lies at paths of a StorageElement, at most 10,000; several files may share one."""
        request = pb.StreamReplicasRequest(storage_element=element, paths=paths)

        async def located(left: float) -> list[pb.LocatedFile]:
            return [file async for answer in self.stub.StreamReplicas(request, timeout=left) for file in answer.files]

        return await self._repeated(located)

    async def list_datasets(self, request: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        """Search datasets, one page."""
        return await self._repeated(lambda left: self.stub.ListDatasets(request, timeout=left))

    async def _repeated(self, call: Callable[[float], Awaitable[T]]) -> T:
        """Call until there is an answer, a definite refusal, or no time left: then UpstreamUnavailable."""
        end = time.monotonic() + self._deadline
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await call(max(0.1, end - time.monotonic()))
            except grpc.aio.AioRpcError as error:
                if is_definite(error):
                    raise
                if time.monotonic() + pause >= end or error.code() is grpc.StatusCode.INTERNAL:
                    raise UpstreamUnavailable(service="catalog", retry_after=timedelta(seconds=1)) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
