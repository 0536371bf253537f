"""What the scheduler asks the storage."""

from collections.abc import AsyncIterable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_OID, uuid4, uuid5

import grpc
from google.protobuf.duration_pb2 import Duration

from khomas.api.common.v1.event_pb2 import WatchEventsRequest, WatchEventsResponse
from khomas.api.storage.v1 import recall_service_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.grant_pb2 import Upload
from khomas.api.storage.v1.recall_pb2 import Recall
from khomas.api.storage.v1.recall_service_pb2_grpc import RecallServiceStub
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.scheduler.catalog import batches

_BATCH = 10_000


class Storage:
    """Asks for grants and commits, many in a call."""

    def __init__(self, channel: grpc.aio.Channel, deadline: float, lifetime: timedelta) -> None:
        self._stub = StorageServiceStub(channel)
        self._recalls = RecallServiceStub(channel)
        self._deadline = deadline
        self._lifetime = Duration()
        self._lifetime.FromTimedelta(lifetime)
        # How long uploads live: the storage may give less than what is asked for.
        self.granted = lifetime

    async def downloads(self, names: Collection[str], site: str) -> dict[str, pb.Download]:
        """How to read files, by LFN; each has grants or an error."""
        found: dict[str, pb.Download] = {}
        for some in batches(names, _BATCH):
            request = pb.BatchCreateDownloadsRequest(names=some, site=site, lifetime=self._lifetime)
            answer = await self._stub.BatchCreateDownloads(request, timeout=self._deadline)
            found |= {download.name: download for download in answer.downloads}
        return found

    async def recalls(self, names: Collection[str]) -> dict[str, Recall]:
        """Want files on disk that are on tape; return how far that is, by LFN, of those that can be recalled."""
        found: dict[str, Recall] = {}
        for some in batches(names, _BATCH):
            request = recall_service_pb2.BatchCreateRecallsRequest(files=some, request_id=str(uuid4()))
            answer = await self._recalls.BatchCreateRecalls(request, timeout=self._deadline)
            found |= {one.recall.file: one.recall for one in answer.results if one.HasField("recall")}
        return found

    def recall_events(self) -> AsyncIterable[WatchEventsResponse]:
        """Tell what becomes of recalls from now on, for ever."""
        request = WatchEventsRequest(cursor="now", filter='kind = "storage.recall.*"')
        return self._stub.WatchEvents(request)

    async def sites(self) -> dict[str, str]:
        """Where StorageElements are, by id."""
        found: dict[str, str] = {}
        request = pb.ListStorageElementsRequest(page_size=1000)
        while True:
            answer = await self._stub.ListStorageElements(request, timeout=self._deadline)
            found |= {one.name.removeprefix("storageElements/"): one.site for one in answer.storage_elements}
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def uploads(self, wanted: Sequence[Upload]) -> list[Upload]:
        """Open uploads, in the same order."""
        opened: list[Upload] = []
        for some in batches(wanted, _BATCH):
            request = pb.BatchCreateUploadsRequest(uploads=some, lifetime=self._lifetime, request_id=str(uuid4()))
            answer = await self._stub.BatchCreateUploads(request, timeout=self._deadline)
            opened += answer.uploads
        if opened and opened[0].HasField("expire_time"):
            self.granted = opened[0].expire_time.ToDatetime() - opened[0].create_time.ToDatetime()
        return opened

    async def renew(self, names: Collection[str]) -> None:
        """Let uploads take files for as long again, from now on. Those that are over are left alone."""
        ends: list[datetime] = []
        for some in batches(names, _BATCH):
            request = pb.BatchRenewUploadsRequest(names=some, lifetime=self._lifetime, request_id=str(uuid4()))
            answer = await self._stub.BatchRenewUploads(request, timeout=self._deadline)
            ends += [one.expire_time.ToDatetime(UTC) for one in answer.uploads]
        if ends:
            self.granted = min(ends) - datetime.now(UTC)

    async def commit(self, origin: str, owner: str, files: Sequence[pb.UploadCommit]) -> Sequence[pb.CommittedFile]:
        """Commit all files of one attempt. Asking again after a lost answer gives the same one."""
        again = request_id("commit", origin)
        request = pb.BatchCommitUploadsRequest(files=files, origin=origin, owner=owner, request_id=again)
        return (await self._stub.BatchCommitUploads(request, timeout=self._deadline)).files

    async def abandon(self, names: Collection[str]) -> None:
        """Give uploads up."""
        for some in batches(names, _BATCH):
            request = pb.BatchAbandonUploadsRequest(names=some, request_id=str(uuid4()))
            await self._stub.BatchAbandonUploads(request, timeout=self._deadline)


def request_id(what: str, uid: str) -> str:
    """The one request id for doing this to that."""
    return str(uuid5(NAMESPACE_OID, f"{what} {uid}"))
