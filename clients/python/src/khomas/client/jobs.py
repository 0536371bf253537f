"""Jobs: submit, look, wait, read, cancel, retry."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from khomas.client.connection import Connection
from khomas.client.errors import KhomasError, UsageError, from_status, is_passing
from khomas.client.parts import chunks, merged
from khomas.client.specs import Sandboxes, job_spec, reason
from khomas.client.waiting import until

_FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
_SANDBOX_BYTES = 16 * 1024 * 1024
_QUICK, _SLOW = 0.05, 2.0
# Names in one call.
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class JobChange:
    """A step of a job: its name, state and reason as people write them."""

    job: str
    state: str
    reason: str
    cursor: str


def job_name(text: str) -> str:
    """Return the resource name of a job that may be given without "jobs/"."""
    return text if text.startswith("jobs/") else f"jobs/{text}"


def _backend_name(text: str) -> str:
    return text if text.startswith("backends/") else f"backends/{text}"


def state_name(number: Any) -> str:
    """Return a state as people write it."""
    from khomas.api.scheduler.v1.state_pb2 import JobState

    return JobState.Name(number).removeprefix("JOB_STATE_")


def state_of(job: Any) -> str:
    """Return the state of a job as people write it."""
    return state_name(job.status.state)


def reason_of(status: Any) -> str:
    """Return the reason of a status as people write it, "" for none."""
    from khomas.api.scheduler.v1.state_pb2 import Reason

    return Reason.Name(status.reason).removeprefix("REASON_") if status.reason else ""


def is_final(job: Any) -> bool:
    """Tell whether nothing will change any more."""
    return state_of(job) in _FINAL


class Jobs:
    """What a client does with jobs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def submit(
        self, specs: Sequence[Any], contents: Mapping[str, bytes] | None = None, *, origin: str = ""
    ) -> Any:
        """Submit specs, uploading sandbox files that the service does not have. Returns the response message.

        What does not fit into one call is checked as a whole first, then submitted part by part.
        """
        if contents:
            await self.upload_sandboxes(contents)
        parts = list(chunks(specs))
        for part in parts if len(parts) > 1 else ():
            await self._create(part, validate_only=True)
        return merged([await self._create(part, origin=origin) for part in parts])

    async def plan(self, specs: Sequence[Any], contents: Mapping[str, bytes] | None = None, *, scripts: bool) -> Any:
        """Say what would happen to specs, and with `scripts` what would run."""
        if contents:
            await self.upload_sandboxes(contents)
        return await self._create(specs, validate_only=True, render_scripts=scripts)

    async def _create(self, specs: Sequence[Any], *, origin: str = "", **options: Any) -> Any:
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.BatchCreateJobsRequest(request_id=str(uuid4()), **options)
        for spec in specs:
            request.jobs.add(spec=spec, origin=origin)
        return await self._connection.call("scheduler", "BatchCreateJobs", request)

    async def upload_sandboxes(self, contents: Mapping[str, bytes]) -> None:
        """Upload small files by content; what the service has already is not sent."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.FindMissingSandboxesRequest(sha256=list(contents))
        missing = (await self._connection.call("scheduler", "FindMissingSandboxes", request)).sha256
        batch = pb.BatchCreateSandboxesRequest(request_id=str(uuid4()))
        length = 0
        for digest in missing:
            batch.sandboxes.add(sha256=digest, content=contents[digest])
            length += len(contents[digest])
            if length > _SANDBOX_BYTES:
                await self._connection.call("scheduler", "BatchCreateSandboxes", batch)
                batch, length = pb.BatchCreateSandboxesRequest(request_id=str(uuid4())), 0
        if batch.sandboxes:
            await self._connection.call("scheduler", "BatchCreateSandboxes", batch)

    async def get(self, name: str) -> Any:
        """Read a job with its attempts."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        return await self._connection.call("scheduler", "GetJob", pb.GetJobRequest(name=job_name(name)))

    async def get_many(self, names: Sequence[str], *, full: bool = False) -> list[Any]:
        """Read many jobs; raises for the first that does not exist."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        found = []
        for part in chunks(names):
            request = pb.BatchGetJobsRequest(names=[job_name(name) for name in part], full=full)
            for result in (await self._connection.call("scheduler", "BatchGetJobs", request)).results:
                if not result.HasField("job"):
                    raise from_status(result.error)
                found.append(result.job)
        return found

    async def find(
        self, filter_text: str = "", *, parent: str = "", order_by: str = "", limit: int = 0, full: bool = False
    ) -> list[Any]:
        """Search jobs, or the children of an array."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.ListJobsRequest(parent=parent, filter=filter_text, order_by=order_by, full=full)
        request.page_size = min(limit, 10_000) if limit else 10_000
        found: list[Any] = []
        while True:
            answer = await self._connection.call("scheduler", "ListJobs", request)
            found += answer.jobs
            if not answer.next_page_token or (limit and len(found) >= limit):
                return found[:limit] if limit else found
            request.page_token = answer.next_page_token

    async def count(self, group_by: str, filter_text: str = "", *, parent: str = "") -> dict[str, int]:
        """Count jobs by a field."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.CountJobsRequest(parent=parent, filter=filter_text, group_by=group_by)
        return dict((await self._connection.call("scheduler", "CountJobs", request)).counts)

    async def wait(
        self,
        names: Sequence[str],
        *,
        timeout: float | None = None,
        on_look: Callable[[list[Any]], None] | None = None,
    ) -> list[Any]:
        """Wait until jobs are final and return them. Raises KhomasError with exit code 124 at the time-out."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = _QUICK
        while True:
            jobs = await self.get_many(names)
            if on_look is not None:
                on_look(jobs)
            if all(is_final(job) for job in jobs):
                return jobs
            if end is not None and time.monotonic() >= end:
                raise KhomasError(f"still not final after {timeout:g} s", "TIMEOUT", exit_code=124)
            await asyncio.sleep(pause if end is None else min(pause, max(0.0, end - time.monotonic())))
            pause = min(_SLOW, pause * 1.3)

    async def wait_for_all(
        self, filter_text: str, *, timeout: float | None = None, on_look: Callable[[int], None] | None = None
    ) -> None:
        """Wait until all jobs that match are final."""

        async def left() -> int:
            counts = await self.count("state", filter_text)
            return sum(number for state, number in counts.items() if state not in _FINAL)

        await until(left, lambda number: not number, timeout=timeout, on_look=on_look)

    async def logs(
        self, name: str, *, stream: str = "stdout", follow: bool = False, attempt: int = 0, offset: int = 0
    ) -> AsyncIterator[bytes]:
        """Stream what a job printed; goes on where it stood when the connection breaks."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        kind = pb.ReadLogRequest.Stream.Value(f"STREAM_{stream.upper()}")
        request = pb.ReadLogRequest(name=job_name(name), stream=kind, follow=follow, attempt=attempt, offset=offset)
        while True:
            try:
                quiet = {"quiet_seconds": None} if follow else {}
                async for part in self._connection.stream("scheduler", "ReadLog", request, **quiet):
                    request.offset = part.offset + len(part.data)
                    request.attempt = part.attempt or request.attempt
                    yield part.data
            except KhomasError as error:
                if not follow or not is_passing(error):
                    raise
                await asyncio.sleep(1)
            else:
                return

    async def explain(self, name: str) -> Any:
        """Say why a job waits or failed."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        return await self._connection.call("scheduler", "ExplainJob", pb.ExplainJobRequest(name=job_name(name)))

    async def cancel(self, names: Sequence[str], why: str = "") -> Any:
        """Want jobs to end. Returns the response message with its counts."""
        return await self._many("BatchCancelJobs", names, reason=why)

    async def hold(self, names: Sequence[str]) -> Any:
        """Keep waiting jobs from starting."""
        return await self._many("BatchHoldJobs", names)

    async def release(self, names: Sequence[str]) -> Any:
        """Let held jobs go on."""
        return await self._many("BatchReleaseJobs", names)

    async def retry(self, names: Sequence[str], reasons: Sequence[str] = (), **changes: Any) -> Any:
        """Submit failed jobs again as new ones; `changes` are fields of RetryJobsRequest."""
        return await self._many("RetryJobs", names, reasons=[reason(one) for one in reasons], **changes)

    async def _many(self, method: str, names: Sequence[str], **fields: Any) -> Any:
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request_type = getattr(pb, f"{method}Request")
        if not names:
            raise UsageError("name at least one job")
        answers = []
        for part in chunks(names, _MOST):
            request = request_type(names=[job_name(name) for name in part], request_id=str(uuid4()), **fields)
            answers.append(await self._connection.call("scheduler", method, request))
        return merged(answers)

    async def outputs(self, name: str) -> list[Any]:
        """Return the OutputFile messages of a job's last attempt, of an array those of all its children."""
        job = await self.get(name)
        if job.HasField("counts"):
            children = await self.find(parent=job.name, order_by="index", full=True)
            return [output for child in children if child.attempts for output in child.attempts[-1].outputs]
        return list(job.attempts[-1].outputs) if job.attempts else []

    async def read_sandbox(self, name: str, path: str, attempt: int = 0) -> bytes:
        """Return a small output that is kept with a job."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        output = pb.JobOutput(job=job_name(name), path=path, attempt=attempt)
        parts = self._connection.stream("scheduler", "ReadSandbox", pb.ReadSandboxRequest(output=output))
        return b"".join([part.data async for part in parts])

    async def commands(self, name: str, attempt: int = 0) -> list[Any]:
        """What was said to batch systems about a job, or about one of its attempts, the oldest first."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.ListJobCommandsRequest(name=job_name(name), attempt=attempt, page_size=1000)
        found: list[Any] = []
        while True:
            answer = await self._connection.call("scheduler", "ListJobCommands", request)
            found += answer.commands
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def slow(self, owner: str = "") -> Any:
        """Return the ListSlowJobsResponse: jobs that get on too slowly, and how many there are by cause."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.ListSlowJobsRequest(owner=owner, page_size=10_000)
        return await self._connection.call("scheduler", "ListSlowJobs", request)

    async def keep_slow(self, names: Sequence[str]) -> Any:
        """Answer for slow jobs: they are meant to be so."""
        return await self._many("KeepSlowJobs", names)

    async def shares(self) -> list[Any]:
        """List the accounts, the root first."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        return list((await self._connection.call("scheduler", "ListShares", pb.ListSharesRequest())).shares)

    async def credentials(self) -> list[Any]:
        """List the credentials towards batch and grid systems."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        answer = await self._connection.call("scheduler", "ListCredentials", pb.ListCredentialsRequest())
        return list(answer.credentials)

    async def backends(self) -> list[Any]:
        """List the backends."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        return list((await self._connection.call("scheduler", "ListBackends", pb.ListBackendsRequest())).backends)

    async def ban_backend(self, backend: str, why: str, span: timedelta | None = None) -> Any:
        """Give a backend no new jobs, for a while or until it is opened. Returns it."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.BanBackendRequest(name=_backend_name(backend), reason=why, request_id=str(uuid4()))
        if span is not None:
            request.duration.FromTimedelta(span)
        return await self._connection.call("scheduler", "BanBackend", request)

    async def drain_backend(self, backend: str, why: str) -> Any:
        """Give a backend no new jobs until it is opened. Returns it."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.DrainBackendRequest(name=_backend_name(backend), reason=why, request_id=str(uuid4()))
        return await self._connection.call("scheduler", "DrainBackend", request)

    async def wait_for_backend(
        self, backend: str, *, timeout: float | None = None, on_look: Callable[[int], None] | None = None
    ) -> None:
        """Wait until a backend has none of our jobs."""

        async def jobs() -> int:
            (found,) = [one for one in await self.backends() if one.name == _backend_name(backend)]
            return sum(queue.our_running_jobs + queue.our_queued_jobs for queue in found.resources)

        await until(jobs, lambda left: not left, timeout=timeout, on_look=on_look)

    async def unban_backend(self, backend: str) -> Any:
        """Give a backend jobs again. Returns it."""
        from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb

        request = pb.UnbanBackendRequest(name=_backend_name(backend), request_id=str(uuid4()))
        return await self._connection.call("scheduler", "UnbanBackend", request)

    async def watch(self, name: str, cursor: str = "") -> AsyncIterator[JobChange]:
        """Follow the steps of a job, or of an array and its children, until it is final."""
        from khomas.api.common.v1.event_pb2 import WatchEventsRequest
        from khomas.api.scheduler.v1.job_pb2 import Job

        subject = job_name(name)
        wanted = f'subject = "{subject}" OR subject = "{subject}/*"'
        while True:
            request = WatchEventsRequest(cursor=cursor, filter=wanted)
            try:
                async for batch in self._connection.stream("scheduler", "WatchEvents", request, quiet_seconds=None):
                    for event in batch.events:
                        job = Job()
                        if not event.resource.Unpack(job):
                            continue  # what is told beside its steps, such as that it is slow
                        yield JobChange(event.subject, state_of(job), reason_of(job.status), event.cursor)
                        if event.subject == subject and is_final(job):
                            return
                    cursor = batch.cursor
            except KhomasError as error:
                if not is_passing(error):
                    raise
                await asyncio.sleep(1)


def spec_of(document: Mapping[str, Any], folder: Path | None = None) -> tuple[Any, dict[str, bytes]]:
    """Read a job document; returns the spec and the contents of the files that it names."""
    sandboxes = Sandboxes(folder or Path())
    return job_spec(document, sandboxes), sandboxes.contents
