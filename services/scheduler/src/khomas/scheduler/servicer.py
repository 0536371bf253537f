"""SchedulerService as it is on the wire."""

from collections.abc import AsyncIterator

from khomas.api.common.v1.event_pb2 import WatchEventsRequest, WatchEventsResponse
from khomas.api.common.v1.explanation_pb2 import Explanation
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.placement_pb2 import Backend
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer
from khomas.kit.boundary.call import Context
from khomas.kit.events import EventLog
from khomas.scheduler.answers.explaining import Explaining
from khomas.scheduler.answers.job_commands import JobCommands
from khomas.scheduler.answers.jobs import Jobs
from khomas.scheduler.answers.logs import Logs
from khomas.scheduler.answers.slow_jobs import SlowJobs
from khomas.scheduler.orders import Orders
from khomas.scheduler.placement.closing import Closing


class SchedulerServicer(SchedulerServiceServicer):
    """Hands each call to the part that knows."""

    def __init__(
        self,
        orders: Orders,
        jobs: Jobs,
        logs: Logs,
        explaining: Explaining,
        slow_jobs: SlowJobs,
        commands: JobCommands,
        closing: Closing,
        events: EventLog,
    ) -> None:
        self._orders = orders
        self._jobs = jobs
        self._logs = logs
        self._explaining = explaining
        self._slow_jobs = slow_jobs
        self._commands = commands
        self._closing = closing
        self._events = events

    async def BatchCreateJobs(  # noqa: N802  names of the contract
        self, request: pb.BatchCreateJobsRequest, context: Context
    ) -> pb.BatchCreateJobsResponse:
        return await self._orders.submit(request)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> Job:  # noqa: N802
        return await self._jobs.get(request)

    async def BatchGetJobs(  # noqa: N802
        self, request: pb.BatchGetJobsRequest, context: Context
    ) -> pb.BatchGetJobsResponse:
        return await self._jobs.batch_get(request)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:  # noqa: N802
        return await self._jobs.page(request)

    async def CountJobs(self, request: pb.CountJobsRequest, context: Context) -> pb.CountJobsResponse:  # noqa: N802
        return await self._jobs.count(request)

    async def BatchCancelJobs(  # noqa: N802
        self, request: pb.BatchCancelJobsRequest, context: Context
    ) -> pb.BatchCancelJobsResponse:
        return await self._orders.cancel(request)

    async def BatchHoldJobs(  # noqa: N802
        self, request: pb.BatchHoldJobsRequest, context: Context
    ) -> pb.BatchHoldJobsResponse:
        return await self._orders.hold(request)

    async def BatchReleaseJobs(  # noqa: N802
        self, request: pb.BatchReleaseJobsRequest, context: Context
    ) -> pb.BatchReleaseJobsResponse:
        return await self._orders.release(request)

    async def RetryJobs(self, request: pb.RetryJobsRequest, context: Context) -> pb.RetryJobsResponse:  # noqa: N802
        return await self._orders.retry(request)

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: Context) -> Explanation:  # noqa: N802
        return await self._explaining.explain(request.name)

    async def ListJobCommands(  # noqa: N802
        self, request: pb.ListJobCommandsRequest, context: Context
    ) -> pb.ListJobCommandsResponse:
        return await self._commands.page(request)

    async def ListSlowJobs(  # noqa: N802
        self, request: pb.ListSlowJobsRequest, context: Context
    ) -> pb.ListSlowJobsResponse:
        return await self._slow_jobs.page(request)

    async def KeepSlowJobs(  # noqa: N802
        self, request: pb.KeepSlowJobsRequest, context: Context
    ) -> pb.KeepSlowJobsResponse:
        return await self._orders.keep_slow(request)

    async def ListShares(  # noqa: N802
        self, request: pb.ListSharesRequest, context: Context
    ) -> pb.ListSharesResponse:
        return await self._jobs.shares()

    async def ReadLog(  # noqa: N802
        self, request: pb.ReadLogRequest, context: Context
    ) -> AsyncIterator[pb.ReadLogResponse]:
        async for piece in self._logs.read(request):
            yield piece

    async def FindMissingSandboxes(  # noqa: N802
        self, request: pb.FindMissingSandboxesRequest, context: Context
    ) -> pb.FindMissingSandboxesResponse:
        return await self._orders.find_missing(request)

    async def BatchCreateSandboxes(  # noqa: N802
        self, request: pb.BatchCreateSandboxesRequest, context: Context
    ) -> pb.BatchCreateSandboxesResponse:
        return await self._orders.create_sandboxes(request)

    async def ReadSandbox(  # noqa: N802
        self, request: pb.ReadSandboxRequest, context: Context
    ) -> AsyncIterator[pb.ReadSandboxResponse]:
        async for piece in self._logs.sandbox(request):
            yield piece

    async def ListBackends(  # noqa: N802
        self, request: pb.ListBackendsRequest, context: Context
    ) -> pb.ListBackendsResponse:
        return await self._closing.page()

    async def BanBackend(self, request: pb.BanBackendRequest, context: Context) -> Backend:  # noqa: N802
        return await self._closing.ban(request)

    async def DrainBackend(self, request: pb.DrainBackendRequest, context: Context) -> Backend:  # noqa: N802
        return await self._closing.drain(request)

    async def UnbanBackend(self, request: pb.UnbanBackendRequest, context: Context) -> Backend:  # noqa: N802
        return await self._closing.unban(request)

    async def ListCredentials(  # noqa: N802
        self, request: pb.ListCredentialsRequest, context: Context
    ) -> pb.ListCredentialsResponse:
        return await self._jobs.credentials(request)

    async def WatchEvents(  # noqa: N802
        self, request: WatchEventsRequest, context: Context
    ) -> AsyncIterator[WatchEventsResponse]:
        async for batch in self._events.watch(request):
            yield batch
