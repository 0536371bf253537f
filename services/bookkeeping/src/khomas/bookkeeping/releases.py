"""Records releases: an event tells of one, the archive is asked for its products."""

from collections.abc import Sequence

import grpc
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.archive.v1 import archive_service_pb2 as pb
from khomas.api.archive.v1.archive_service_pb2_grpc import ArchiveServiceStub
from khomas.api.archive.v1.release_pb2 import Release
from khomas.api.common.v1.event_pb2 import Event
from khomas.bookkeeping.activities import Activities, of_release
from khomas.bookkeeping.tables import pending_release
from khomas.kit.database import Database, insert_many

_PAGE = 1000
_CALL_SECONDS = 60.0
_MADE = (Release.STATE_READY, Release.STATE_PUBLISHED)


class Releases:
    """Follows the archive."""

    def __init__(self, database: Database, activities: Activities, archive: ArchiveServiceStub) -> None:
        self._database = database
        self._activities = activities
        self._archive = archive

    async def handle(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Note the releases that were made."""
        names = set()
        for event in events:
            release = Release()
            if event.resource.Unpack(release) and release.state in _MADE:
                names.add(release.name)
        await insert_many(connection, pending_release, [{"name": name} for name in names], skip_existing=True)

    async def relist(self) -> None:
        """Note all releases, because events were missed; one that is recorded already is not recorded twice."""
        request = pb.ListReleasesRequest(page_size=_PAGE)
        while True:
            page = await self._archive.ListReleases(request, timeout=_CALL_SECONDS)
            rows = [{"name": release.name} for release in page.releases if release.state in _MADE]
            async with self._database.write() as connection:
                await insert_many(connection, pending_release, rows, skip_existing=True)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def work(self) -> None:
        """Record the noted ones with their products."""
        async with self._database.read() as connection:
            names = (await connection.execute(select(pending_release.c.name))).scalars().all()
        for name in names:
            release = await self._release(name)
            async with self._database.write() as connection:
                if release is not None:
                    await self._activities.record(connection, [of_release(release)])
                await connection.execute(delete(pending_release).where(pending_release.c.name == name))

    async def _release(self, name: str) -> Release | None:
        try:
            return await self._archive.GetRelease(pb.GetReleaseRequest(name=name))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
