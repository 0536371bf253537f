"""The calls that read jobs and backends."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.rpc.status_pb2 import Status
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job as WireJob
from khomas.kit.boundary.status import status_of
from khomas.kit.database import Database
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.messages import job_message
from khomas.scheduler.names import uid_of
from khomas.scheduler.records import Job
from khomas.scheduler.sites import Sites
from khomas.scheduler.store.accounting import Accounting
from khomas.scheduler.store.changes import read_attempts, read_counts
from khomas.scheduler.store.listing import Listing
from khomas.scheduler.store.lookup import Lookup


@dataclass(frozen=True, slots=True)
class Jobs:
    """Answers reading calls."""

    database: Database
    lookup: Lookup
    listing: Listing
    sites: Sites
    accounting: Accounting

    async def get(self, request: pb.GetJobRequest) -> WireJob:
        """A job with everything. Raises `JobNotFound`."""
        uid = uid_of(request.name)
        async with self.database.read() as connection:
            found = await self.lookup.read(connection, [uid])
            if uid not in found:
                raise JobNotFound(name=request.name)
            return (await self._written(connection, [found[uid]], full=True))[0]

    async def batch_get(self, request: pb.BatchGetJobsRequest) -> pb.BatchGetJobsResponse:
        """Many jobs, or why there is none of that name."""
        uids: dict[str, str] = {}
        missing: dict[str, Status] = {}
        for name in request.names:
            try:
                uids[name] = uid_of(name)
            except JobNotFound as error:
                missing[name] = status_of(error)
        async with self.database.read() as connection:
            found = await self.lookup.read(connection, dict.fromkeys(uids.values()))
            jobs = await self._written(connection, list(found.values()), full=request.full)
        written = {job.name: job for job in jobs}
        for name in uids.keys() - written.keys():
            missing[name] = status_of(JobNotFound(name=name))
        return pb.BatchGetJobsResponse(
            results=[
                pb.JobResult(job=written[name]) if name in written else pb.JobResult(error=missing[name])
                for name in request.names
            ]
        )

    async def page(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """A page of jobs, or of the children of an array."""
        async with self.database.read() as connection:
            jobs, token = await self.listing.page(connection, request)
            written = await self._written(connection, jobs, full=request.full)
        return pb.ListJobsResponse(jobs=written, next_page_token=token)

    async def count(self, request: pb.CountJobsRequest) -> pb.CountJobsResponse:
        """Numbers of jobs by the value of a field."""
        async with self.database.read() as connection:
            return pb.CountJobsResponse(counts=await self.listing.counts(connection, request))

    async def shares(self) -> pb.ListSharesResponse:
        """The accounts with what they have and have used."""
        async with self.database.read() as connection:
            return pb.ListSharesResponse(shares=await self.accounting.view(connection))

    async def credentials(self, request: pb.ListCredentialsRequest) -> pb.ListCredentialsResponse:
        """What is known of the credentials."""
        return pb.ListCredentialsResponse(credentials=self.sites.wallet.messages(self.sites.by_credential))

    async def _written(self, connection: AsyncConnection, jobs: Sequence[Job], *, full: bool) -> "list[WireJob]":
        arrays = [job.uid for job in jobs if job.is_array]
        counts = await read_counts(connection, arrays) if arrays else {}
        if not full:
            return [job_message(job, counts=counts.get(job.uid)) for job in jobs]
        attempts = await read_attempts(connection, [job.uid for job in jobs])
        plans = await self.lookup.blueprints.of(connection, {job.spec for job in jobs})
        return [
            job_message(
                job,
                spec=plans[job.spec].spec,
                attempts=attempts.get(job.uid, ()),
                counts=counts.get(job.uid),
                site=self.sites.by_name,
            )
            for job in jobs
        ]
