"""The rpcs: each reads its request, asks one thing, builds its answer."""

# The contract gives the methods their names.
# ruff: noqa: N802

from collections.abc import AsyncIterator
from dataclasses import dataclass

from khomas.api.catalog.v1 import adoption_pb2, dataset_pb2
from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceServicer
from khomas.api.common.v1 import event_pb2, explanation_pb2
from khomas.catalog.adoptions import Adoptions
from khomas.catalog.changes import Changes
from khomas.catalog.creation import Creation
from khomas.catalog.datasets import Datasets
from khomas.catalog.deletions import Deletions
from khomas.catalog.files import Files
from khomas.catalog.keys import Keys
from khomas.catalog.lineage import Lineage
from khomas.catalog.located import Located
from khomas.kit.boundary.call import Context
from khomas.kit.events import EventLog


@dataclass(frozen=True, slots=True)
class Parts:
    """What the rpcs are made of."""

    creation: Creation
    files: Files
    located: Located
    changes: Changes
    deletions: Deletions
    lineage: Lineage
    keys: Keys
    datasets: Datasets
    adoptions: Adoptions
    log: EventLog


class CatalogServicer(CatalogServiceServicer):
    """Implements khomas.api.catalog.v1.CatalogService."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def BatchCreateFiles(
        self, request: pb.BatchCreateFilesRequest, context: Context
    ) -> pb.BatchCreateFilesResponse:
        return await self._parts.creation.create(request)

    async def ImportFiles(
        self, request_iterator: AsyncIterator[pb.BatchCreateFilesRequest], context: Context
    ) -> AsyncIterator[pb.BatchCreateFilesResponse]:
        async for request in request_iterator:
            yield await self._parts.creation.create(request)

    async def BatchGetFiles(self, request: pb.BatchGetFilesRequest, context: Context) -> pb.BatchGetFilesResponse:
        return await self._parts.files.get(request)

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        return await self._parts.files.page(request)

    def StreamFiles(self, request: pb.ListFilesRequest, context: Context) -> AsyncIterator[pb.ListFilesResponse]:
        return self._parts.files.stream(request)

    def StreamReplicas(
        self, request: pb.StreamReplicasRequest, context: Context
    ) -> AsyncIterator[pb.StreamReplicasResponse]:
        return self._parts.located.stream(request)

    async def ListDirectory(self, request: pb.ListDirectoryRequest, context: Context) -> pb.ListDirectoryResponse:
        return await self._parts.files.list_directory(request)

    async def BatchUpdateMetadata(
        self, request: pb.BatchUpdateMetadataRequest, context: Context
    ) -> pb.BatchUpdateMetadataResponse:
        return await self._parts.changes.metadata(request)

    async def BatchUpdateReplicas(
        self, request: pb.BatchUpdateReplicasRequest, context: Context
    ) -> pb.BatchUpdateReplicasResponse:
        return await self._parts.changes.replicas(request)

    async def BatchDeleteFiles(
        self, request: pb.BatchDeleteFilesRequest, context: Context
    ) -> pb.BatchDeleteFilesResponse:
        return await self._parts.deletions.delete(request)

    async def BatchUndeleteFiles(
        self, request: pb.BatchUndeleteFilesRequest, context: Context
    ) -> pb.BatchUndeleteFilesResponse:
        return await self._parts.deletions.undelete(request)

    async def ListLineage(self, request: pb.ListLineageRequest, context: Context) -> pb.ListLineageResponse:
        return await self._parts.lineage.walk(request)

    async def BatchCreateMetadataKeys(
        self, request: pb.BatchCreateMetadataKeysRequest, context: Context
    ) -> pb.BatchCreateMetadataKeysResponse:
        return await self._parts.keys.create(request)

    async def ListMetadataKeys(
        self, request: pb.ListMetadataKeysRequest, context: Context
    ) -> pb.ListMetadataKeysResponse:
        return await self._parts.keys.page(request)

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: Context) -> dataset_pb2.Dataset:
        return await self._parts.datasets.create(request)

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> dataset_pb2.Dataset:
        return await self._parts.datasets.get(request.name)

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        return await self._parts.datasets.page(request)

    async def UpdateDatasetFiles(self, request: pb.UpdateDatasetFilesRequest, context: Context) -> dataset_pb2.Dataset:
        return await self._parts.datasets.update_files(request)

    async def CloseDataset(self, request: pb.CloseDatasetRequest, context: Context) -> dataset_pb2.Dataset:
        return await self._parts.datasets.close(request)

    async def CreateAdoption(self, request: pb.CreateAdoptionRequest, context: Context) -> adoption_pb2.Adoption:
        return await self._parts.adoptions.create(request)

    async def GetAdoption(self, request: pb.GetAdoptionRequest, context: Context) -> adoption_pb2.Adoption:
        return await self._parts.adoptions.get(request.name)

    async def ExplainAdoption(
        self, request: pb.ExplainAdoptionRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._parts.adoptions.explain(request.name)

    async def ListAdoptions(self, request: pb.ListAdoptionsRequest, context: Context) -> pb.ListAdoptionsResponse:
        return await self._parts.adoptions.page(request)

    async def UndoAdoption(self, request: pb.UndoAdoptionRequest, context: Context) -> adoption_pb2.Adoption:
        return await self._parts.adoptions.undo(request)

    def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        return self._parts.log.watch(request)
