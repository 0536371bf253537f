"""Looks at the jobs themselves when the scheduler no longer has the events that were missed."""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import select

from khomas.api.bookkeeping.v1.production_pb2 import WorkItem
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.bookkeeping.activities import Activities, of_jobs
from khomas.bookkeeping.counting import FINAL, Counting
from khomas.bookkeeping.tables import stage, submission, work_item
from khomas.kit.database import Database

_AT_ONCE = 5000
_CALL_SECONDS = 120.0


class CatchingUp:
    """Counts the jobs that ended, those that were counted before just not again."""

    def __init__(
        self, database: Database, counting: Counting, activities: Activities, scheduler: SchedulerServiceStub
    ) -> None:
        self._database = database
        self._counting = counting
        self._activities = activities
        self._scheduler = scheduler

    async def work(self) -> None:
        """Look at every job that is not known to have ended."""
        assigned = select(work_item.c.job).where(work_item.c.state == WorkItem.STATE_ASSIGNED, work_item.c.job != "")
        arrays = (
            select(submission.c.job)
            .join(stage, stage.c.id == submission.c.stage_id)
            .where(submission.c.job != "", stage.c.complete.is_(False))
        )
        async with self._database.read() as connection:
            jobs = (await connection.execute(assigned)).scalars().all()
            parents = (await connection.execute(arrays)).scalars().all()
        for start in range(0, len(jobs), _AT_ONCE):
            request = pb.BatchGetJobsRequest(names=jobs[start : start + _AT_ONCE], full=True)
            results = (await self._scheduler.BatchGetJobs(request, timeout=_CALL_SECONDS)).results
            await self._count([result.job for result in results if result.HasField("job")])
        for parent in parents:
            async for children in self._children(parent):
                await self._count(children)

    async def _children(self, parent: str) -> AsyncIterator[Sequence[Job]]:
        request = pb.ListJobsRequest(parent=parent, page_size=_AT_ONCE, full=True)
        while True:
            page = await self._scheduler.ListJobs(request, timeout=_CALL_SECONDS)
            yield page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _count(self, jobs: Sequence[Job]) -> None:
        ended = [job for job in jobs if job.status.state in FINAL]
        async with self._database.write() as connection:
            await self._counting.handle(connection, ended)
            await self._activities.record(connection, of_jobs(ended))
