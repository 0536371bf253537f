"""The rpcs: each reads its request, asks one thing, builds its answer."""

# The names of the methods are the contract's.
# ruff: noqa: N802

from collections.abc import AsyncIterator

from khomas.api.archive.v1 import archive_service_pb2 as pb
from khomas.api.archive.v1 import release_pb2
from khomas.api.archive.v1.archive_service_pb2_grpc import ArchiveServiceServicer
from khomas.api.common.v1 import event_pb2, explanation_pb2
from khomas.archive.explaining import explain
from khomas.archive.exporting import Exporting
from khomas.archive.records import Records
from khomas.archive.releases import Releases
from khomas.archive.validation import Validation
from khomas.kit.boundary.call import Context
from khomas.kit.events import EventLog


class ArchiveServicer(ArchiveServiceServicer):
    """Implements khomas.api.archive.v1.ArchiveService."""

    def __init__(
        self, releases: Releases, validation: Validation, records: Records, exporting: Exporting, log: EventLog
    ) -> None:
        self._releases = releases
        self._validation = validation
        self._records = records
        self._exporting = exporting
        self._log = log

    async def CreateRelease(self, request: pb.CreateReleaseRequest, context: Context) -> release_pb2.Release:
        if request.validate_only:
            return await self._validation.validate(request.release)
        return await self._releases.create(request)

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Context) -> release_pb2.Release:
        return await self._releases.get(request.name)

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Context) -> pb.ListReleasesResponse:
        return await self._releases.page(request)

    async def PublishRelease(self, request: pb.PublishReleaseRequest, context: Context) -> release_pb2.Release:
        return await self._releases.publish(request)

    async def WithdrawRelease(self, request: pb.WithdrawReleaseRequest, context: Context) -> release_pb2.Release:
        return await self._releases.withdraw(request)

    async def ExportRelease(self, request: pb.ExportReleaseRequest, context: Context) -> release_pb2.Export:
        return await self._exporting.export(request)

    async def ListExporters(self, request: pb.ListExportersRequest, context: Context) -> pb.ListExportersResponse:
        return self._exporting.exporters()

    async def StreamRecords(
        self, request: pb.StreamRecordsRequest, context: Context
    ) -> AsyncIterator[pb.StreamRecordsResponse]:
        async for answer in self._records.stream(request.name):
            yield answer

    async def ExplainRelease(self, request: pb.ExplainReleaseRequest, context: Context) -> explanation_pb2.Explanation:
        return await explain(self._releases, request.name)

    async def WatchEvents(
        self, request: event_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchEventsResponse]:
        async for answer in self._log.watch(request):
            yield answer
