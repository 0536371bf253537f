"""The calls that read jobs and backends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.rpc.status_pb2 import Status
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job as WireJob
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.boundary.status import status_of
from khomas.kit.database import Database
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.messages import write_job
from khomas.scheduler.names import uid_of
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.records import Attempt, Counts, Job, Summary
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
            details = await self._details(connection, [found[uid]], full=True)
        answer = WireJob()
        details.write(answer, found[uid])
        return answer

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
            details = await self._details(connection, list(found.values()), full=request.full)
        response = pb.BatchGetJobsResponse()
        for name in request.names:
            result = response.results.add()
            if (job := found.get(uids.get(name, ""))) is not None:
                details.write(result.job, job)
            else:
                result.error.CopyFrom(missing.get(name) or status_of(JobNotFound(name=name)))
        return response

    async def page(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """A page of jobs, or of the children of an array."""
        async with self.database.read() as connection:
            jobs, token = await self.listing.page(connection, request)
            details = await self._details(connection, jobs, full=request.full)
        response = pb.ListJobsResponse(next_page_token=token)
        for job in jobs:
            details.write(response.jobs.add(), job)
        return response

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

    async def _details(self, connection: AsyncConnection, jobs: Sequence[Job | Summary], *, full: bool) -> "_Details":
        arrays = [job.uid for job in jobs if job.is_array]
        counts = await read_counts(connection, arrays) if arrays else {}
        if not full:
            return _Details(counts)
        attempts = await read_attempts(connection, [job.uid for job in jobs])
        plans = await self.lookup.blueprints.of(connection, {job.spec for job in jobs})
        return _Details(counts, attempts, {uid: plan.spec for uid, plan in plans.items()}, self.sites.by_name)


@dataclass(frozen=True, slots=True)
class _Details:
    """What jobs are shown with."""

    counts: Mapping[str, Counts]
    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)
    specs: Mapping[str, JobSpec] = field(default_factory=dict)
    site: Mapping[str, str] = field(default_factory=dict)

    def write(self, message: WireJob, job: Job | Summary) -> None:
        """Write a job."""
        write_job(
            message,
            job,
            spec=self.specs.get(job.spec),
            attempts=self.attempts.get(job.uid, ()),
            counts=self.counts.get(job.uid),
            site=self.site,
        )
