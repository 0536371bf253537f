"""What tests of jobs need: short ways to submit and to wait."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from google.protobuf.json_format import ParseDict

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.job_spec_pb2 import Command, JobSpec
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.kit.testing import Served
from khomas.scheduler.app import Parts
from khomas.scheduler.records import FINAL


def shell(script: str, **spec: object) -> JobSpec:
    """A job that runs a line of sh; braces are written twice."""
    made = ParseDict(spec, JobSpec())
    made.command.CopyFrom(Command(executable="/bin/sh", arguments=["-c", script]))
    return made


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A running scheduler."""

    served: Served

    @property
    def stub(self) -> SchedulerServiceStub:
        """For calls with every right."""
        return SchedulerServiceStub(self.served.channel)

    @property
    def parts(self) -> Parts:
        """What it is made of."""
        parts: Parts = self.served.services["scheduler"].parts
        return parts

    async def submit(self, *specs: JobSpec, origin: str = "") -> list[Job]:
        """Submit jobs."""
        return list((await self.answer(*specs, origin=origin)).jobs)

    async def answer(self, *specs: JobSpec, origin: str = "") -> pb.BatchCreateJobsResponse:
        """Submit jobs and give the whole answer."""
        jobs = [Job(spec=spec, origin=origin) for spec in specs]
        return await self.stub.BatchCreateJobs(pb.BatchCreateJobsRequest(jobs=jobs, request_id=str(uuid4())))

    async def get(self, name: str) -> Job:
        """Read a job."""
        return await self.stub.GetJob(pb.GetJobRequest(name=name))

    async def children(self, name: str) -> list[Job]:
        """All children of an array, with everything."""
        request = pb.ListJobsRequest(parent=name, page_size=10_000, full=True)
        return list((await self.stub.ListJobs(request)).jobs)

    async def wait(self, name: str, states: Iterable[int] = FINAL, seconds: float = 20.0, pause: float = 0.02) -> Job:
        """Wait until a job is in one of these states."""
        wanted = frozenset(states)
        async with asyncio.timeout(seconds):
            while (job := await self.get(name)).status.state not in wanted:  # noqa: ASYNC110  it is elsewhere
                await asyncio.sleep(pause)
        return job

    async def run(self, *specs: JobSpec) -> list[Job]:
        """Submit jobs and wait for their ends."""
        return [await self.wait(job.name) for job in await self.submit(*specs)]

    async def cancel(self, *names: str) -> pb.BatchCancelJobsResponse:
        """Want jobs to end."""
        return await self.stub.BatchCancelJobs(pb.BatchCancelJobsRequest(names=names, request_id=str(uuid4())))

    async def log(self, name: str, stream: int = 0, follow: bool = False) -> str:
        """What a job printed."""
        request = pb.ReadLogRequest(name=name, follow=follow)
        request.stream = stream  # type: ignore[assignment]  # a number of the enum
        return b"".join([piece.data async for piece in self.stub.ReadLog(request)]).decode()


def states(jobs: Sequence[Job]) -> list[str]:
    """Names of the states."""
    from khomas.scheduler.messages import state_name

    return [state_name(job.status.state) for job in jobs]
