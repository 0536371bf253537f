"""The rpcs: each reads its request, asks one thing, builds its answer."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from collections.abc import AsyncIterator

from khomas.api.common.v1 import event_pb2, explanation_pb2
from khomas.api.storage.v1 import storage_element_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceServicer
from khomas.kit.boundary.call import Context
from khomas.kit.events import EventLog
from khomas.storage.deletions.deletions import Deletions
from khomas.storage.elements.administration import Administration
from khomas.storage.grants.downloads import Downloads
from khomas.storage.scanning.scan import Scans
from khomas.storage.transfers.transfers import Transfers
from khomas.storage.transfers.watching import Watching
from khomas.storage.uploads.commits import Commits
from khomas.storage.uploads.uploads import Uploads


class StorageServicer(StorageServiceServicer):
    """Implements khomas.api.storage.v1.StorageService."""

    def __init__(
        self,
        administration: Administration,
        uploads: Uploads,
        commits: Commits,
        downloads: Downloads,
        transfers: Transfers,
        watching: Watching,
        deletions: Deletions,
        scans: Scans,
        log: EventLog,
    ) -> None:
        self._administration = administration
        self._uploads = uploads
        self._commits = commits
        self._downloads = downloads
        self._transfers = transfers
        self._watching = watching
        self._deletions = deletions
        self._scans = scans
        self._log = log

    async def CreateStorageElement(
        self, request: pb.CreateStorageElementRequest, context: Context
    ) -> storage_element_pb2.StorageElement:
        return await self._administration.create(request)

    async def GetStorageElement(
        self, request: pb.GetStorageElementRequest, context: Context
    ) -> storage_element_pb2.StorageElement:
        return await self._administration.get(request.name)

    async def ListStorageElements(
        self, request: pb.ListStorageElementsRequest, context: Context
    ) -> pb.ListStorageElementsResponse:
        return await self._administration.page(request)

    async def UpdateStorageElement(
        self, request: pb.UpdateStorageElementRequest, context: Context
    ) -> storage_element_pb2.StorageElement:
        return await self._administration.update(request)

    async def DeleteStorageElement(
        self, request: pb.DeleteStorageElementRequest, context: Context
    ) -> pb.DeleteStorageElementResponse:
        return await self._administration.delete(request)

    async def BatchCreateUploads(
        self, request: pb.BatchCreateUploadsRequest, context: Context
    ) -> pb.BatchCreateUploadsResponse:
        return await self._uploads.create(request)

    async def BatchCommitUploads(
        self, request: pb.BatchCommitUploadsRequest, context: Context
    ) -> pb.BatchCommitUploadsResponse:
        return await self._commits.commit(request)

    async def BatchRenewUploads(
        self, request: pb.BatchRenewUploadsRequest, context: Context
    ) -> pb.BatchRenewUploadsResponse:
        return await self._uploads.renew(request)

    async def BatchAbandonUploads(
        self, request: pb.BatchAbandonUploadsRequest, context: Context
    ) -> pb.BatchAbandonUploadsResponse:
        return await self._uploads.abandon(request)

    async def BatchGetUploads(self, request: pb.BatchGetUploadsRequest, context: Context) -> pb.BatchGetUploadsResponse:
        return pb.BatchGetUploadsResponse(uploads=await self._uploads.get(request.names))

    async def BatchCreateDownloads(
        self, request: pb.BatchCreateDownloadsRequest, context: Context
    ) -> pb.BatchCreateDownloadsResponse:
        return await self._downloads.create(request)

    async def BatchCreateTransfers(
        self, request: pb.BatchCreateTransfersRequest, context: Context
    ) -> pb.BatchCreateTransfersResponse:
        return await self._transfers.create(request)

    async def GetTransfer(self, request: pb.GetTransferRequest, context: Context) -> transfer_pb2.Transfer:
        return await self._transfers.get(request.name)

    async def ListTransfers(self, request: pb.ListTransfersRequest, context: Context) -> pb.ListTransfersResponse:
        return await self._transfers.page(request)

    def WatchTransfers(
        self, request: pb.WatchTransfersRequest, context: Context
    ) -> AsyncIterator[pb.WatchTransfersResponse]:
        return self._watching.watch(request)

    async def BatchCancelTransfers(
        self, request: pb.BatchCancelTransfersRequest, context: Context
    ) -> pb.BatchCancelTransfersResponse:
        return await self._transfers.cancel(request)

    async def ExplainTransfer(
        self, request: pb.ExplainTransferRequest, context: Context
    ) -> explanation_pb2.Explanation:
        return await self._transfers.explain(request.name)

    async def ExplainUpload(self, request: pb.ExplainUploadRequest, context: Context) -> explanation_pb2.Explanation:
        return await self._uploads.explain(request.name)

    async def ListDeletions(self, request: pb.ListDeletionsRequest, context: Context) -> pb.ListDeletionsResponse:
        return await self._deletions.page(request)

    def ScanTree(self, request: pb.ScanTreeRequest, context: Context) -> AsyncIterator[pb.ScanTreeResponse]:
        return self._scans.scan(request)

    def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        return self._log.watch(request)
