"""Cancels the jobs of productions that were given up."""

from uuid import uuid4

from sqlalchemy import select, update

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.bookkeeping.tables import production
from khomas.kit.database import Database

_PAGE = 10_000
_CALL_SECONDS = 120.0


class Cancelling:
    """Finds jobs by their tags, so that none escapes whose name was never stored."""

    def __init__(self, database: Database, scheduler: SchedulerServiceStub) -> None:
        self._database = database
        self._scheduler = scheduler

    async def work(self) -> None:
        """Cancel what is still to be cancelled."""
        query = select(production.c.id, production.c.name, production.c.message).where(production.c.cancelling)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            await self._cancel(row.name.removeprefix("productions/"), row.message)
            done = update(production).values(cancelling=False).where(production.c.id == row.id)
            async with self._database.write() as connection:
                await connection.execute(done)

    async def _cancel(self, tag: str, reason: str) -> None:
        request = pb.ListJobsRequest(filter=f'tags.production = "{tag}"', page_size=_PAGE)
        while True:
            page = await self._scheduler.ListJobs(request, timeout=_CALL_SECONDS)
            if names := [job.name for job in page.jobs]:
                await self._scheduler.BatchCancelJobs(
                    pb.BatchCancelJobsRequest(names=names, reason=reason, request_id=str(uuid4())),
                    timeout=_CALL_SECONDS,
                )
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
