"""What the storage does when files change in the catalogue."""

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.common.v1 import event_pb2
from khomas.kit.database import Database
from khomas.kit.events import EventConsumer, EventLog
from khomas.storage import known_replicas
from khomas.storage.catalog import Catalog
from khomas.storage.deletions import deletions
from khomas.storage.reconciling.recording import Recording
from khomas.storage.rules import events as rules
from khomas.storage.rules.protection import decide_alone
from khomas.storage.tables import cursor

_FILTER = 'kind = "catalog.file.*" OR kind = "catalog.dataset.*"'
_DATASETS = "catalog.dataset."
# In one listing, which is of one moment: a file that changes between two of them might be in neither.
_LISTED = "state = ACTIVE OR state = DELETING"


class Following:
    """Follows the catalogue's files: for the space they take, for those that are to go, and for rules."""

    def __init__(self, database: Database, event_log: EventLog, catalog: Catalog, recording: Recording) -> None:
        self._database = database
        self._log = event_log
        self._catalog = catalog
        self._recording = recording
        self._consumer = EventConsumer(
            database, cursor, name="storage", watch=catalog.stub.WatchEvents, filter_text=_FILTER
        )

    async def run(self) -> None:
        """Follow for ever."""
        await self._consumer.run(self._handle, self._relist)

    async def _handle(self, connection: AsyncConnection, events: Sequence[event_pb2.Event]) -> None:
        await decide_alone(connection)
        # Each event has the whole file, so the last one of a file says all.
        files: dict[str, file_pb2.File] = {}
        for event in events:
            file = file_pb2.File()
            if _unpacked(event, file):
                files[file.uid] = file
        await self._take(connection, files)
        await rules.note_datasets(connection, [event for event in events if event.kind.startswith(_DATASETS)])
        await known_replicas.know_until(connection, events[-1].create_time.ToDatetime(UTC))

    async def _take(self, connection: AsyncConnection, files: dict[str, file_pb2.File]) -> None:
        if files:
            await known_replicas.note(connection, files)
            await deletions.plan(connection, self._log, files)
            await self._recording.suspects(connection, files.values())
            await rules.note_files(connection, files)

    async def _relist(self) -> None:
        """Events were missed: see how everything is now. Whatever ends this half-way, the next one begins anew."""
        begin_time = datetime.now(UTC)
        async with self._database.write() as connection:
            await decide_alone(connection)
            listing = await known_replicas.begin_listing(connection)
        request = catalog_pb.ListFilesRequest(filter=_LISTED, view=catalog_pb.FILE_VIEW_FULL)
        async for batch in self._catalog.stub.StreamFiles(request):
            files = {file.uid: file for file in batch.files}
            async with self._database.write() as connection:
                await decide_alone(connection)
                # Another process may follow events meanwhile.
                newer = await known_replicas.noted_since(connection, list(files), listing)
                await self._take(connection, {uid: file for uid, file in files.items() if uid not in newer})
        async with self._database.write() as connection:
            await decide_alone(connection)
            await known_replicas.end_listing(connection, listing, begin_time)
            await rules.list_all(connection)


def _unpacked(event: event_pb2.Event, message: Message) -> bool:
    return event.resource.Unpack(message)
