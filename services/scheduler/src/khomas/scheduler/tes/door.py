"""Routes of GA4GH TES 1.1, and how errors look there."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiofiles
from aiohttp import web
from aiohttp.typedefs import Handler

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.kit.boundary.status import info_of, translated
from khomas.kit.service import Host
from khomas.kit.telemetry.trace import current_trace_id, enter_trace, trace_of
from khomas.scheduler.config import TesSettings
from khomas.scheduler.errors import JobNotFound
from khomas.scheduler.servicer import SchedulerServicer
from khomas.scheduler.tes.answers import ExecutorRecords, View, detailed, minimal
from khomas.scheduler.tes.calls import Calls
from khomas.scheduler.tes.documents import read_task
from khomas.scheduler.tes.searching import search, view_of
from khomas.scheduler.tes.service_info import service_info
from khomas.scheduler.tes.submission import LOG_FILE, TAG, VERSION, job_of, program

log = logging.getLogger(__name__)

_BASE = "/ga4gh/tes/v1"
_MAX_BODY_BYTES = 8 * 1024 * 1024
_MAX_RECORD_BYTES = 4 * 1024 * 1024
# By number of the gRPC code.
_STATUS = {3: 400, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 14: 503, 16: 401}


def door(settings: TesSettings, host: Host, servicer: SchedulerServicer, folder: Path) -> web.Application:
    """Build the application; `folder` holds what attempts left."""
    tasks = Tasks(settings, Calls(servicer, host.verifier), folder)
    information = service_info(settings, host)

    async def tell(request: web.Request) -> web.Response:
        return web.json_response(information)

    application = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_errors])
    application.router.add_get(f"{_BASE}/service-info", tell)
    application.router.add_post(f"{_BASE}/tasks", tasks.create)
    application.router.add_get(f"{_BASE}/tasks", tasks.page)
    application.router.add_get(f"{_BASE}/tasks/{{id:[^/:]+}}", tasks.get)
    application.router.add_post(f"{_BASE}/tasks/{{id:[^/:]+}}:cancel", tasks.cancel)
    return application


@dataclass(frozen=True, slots=True)
class Tasks:
    """Answers requests about tasks."""

    settings: TesSettings
    calls: Calls
    folder: Path

    async def create(self, request: web.Request) -> web.Response:
        """Take a task in. Nothing is read of strangers."""
        await self.calls.admit("BatchCreateJobs", _authorization(request))
        spec = job_of(read_task(await request.text()), self.settings.images)
        await self._provide_program(request)
        wanted = pb.BatchCreateJobsRequest(jobs=[Job(spec=spec)], request_id=str(uuid4()))
        answer = await self._call(request, "BatchCreateJobs", wanted)
        return web.json_response({"id": answer.jobs[0].uid})

    async def get(self, request: web.Request) -> web.Response:
        """Show a task."""
        view = view_of(request.query)
        name = _name(request)
        job = await self._call(request, "GetJob", pb.GetJobRequest(name=name))
        if job.spec.tags.get(TAG) != VERSION:
            raise JobNotFound(
                f"There is no task {request.match_info['id']}; a job of that id has other ways in.", name=name
            )
        return web.json_response(await self._written(job, view))

    async def page(self, request: web.Request) -> web.Response:
        """Show a page of tasks, the youngest first."""
        view, wanted = view_of(request.query), search(request.query)
        answer = await self._call(request, "ListJobs", wanted)
        page: dict[str, Any] = {"tasks": [await self._written(job, view) for job in answer.jobs]}
        if answer.next_page_token:
            page["next_page_token"] = answer.next_page_token
        return web.json_response(page)

    async def cancel(self, request: web.Request) -> web.Response:
        """Want a task to end."""
        wanted = pb.BatchCancelJobsRequest(names=[_name(request)], request_id=str(uuid4()))
        await self._call(request, "BatchCancelJobs", wanted)
        return web.json_response({})

    async def _call(self, request: web.Request, method: str, message: Any) -> Any:
        return await self.calls.call(method, message, _authorization(request))

    async def _provide_program(self, request: web.Request) -> None:
        """Store what runs the executors, unless it is stored: nobody read it for long, or it is of a new version."""
        ours = program()
        found = await self._call(request, "FindMissingSandboxes", pb.FindMissingSandboxesRequest(sha256=[ours.sha256]))
        if found.sha256:
            wanted = pb.BatchCreateSandboxesRequest(request_id=str(uuid4()))
            wanted.sandboxes.add(sha256=ours.sha256, content=ours.content)
            await self._call(request, "BatchCreateSandboxes", wanted)

    async def _written(self, job: Job, view: View) -> dict[str, Any]:
        if view is View.MINIMAL:
            return minimal(job)
        return detailed(job, view, await self._records(job))

    async def _records(self, job: Job) -> ExecutorRecords:
        kept = {one.number: one.uid for one in job.attempts if any(file.path == LOG_FILE for file in one.outputs)}
        return {number: await _record(self.folder / uid / "sandbox" / LOG_FILE) for number, uid in kept.items()}


def _name(request: web.Request) -> str:
    return f"jobs/{request.match_info['id']}"


def _authorization(request: web.Request) -> str:
    return request.headers.get("Authorization", "")


async def _record(path: Path) -> Sequence[dict[str, Any]]:
    """What the executors of an attempt did. Commands of the task could write there too, so it may be anything."""
    try:
        async with aiofiles.open(path, encoding="utf-8") as stream:
            records = json.loads(await stream.read(_MAX_RECORD_BYTES))
    except (OSError, ValueError):
        return ()
    return [one for one in records if _is_record(one)] if isinstance(records, list) else ()


def _is_record(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("exit_code", 0), int):
        return False
    return all(isinstance(one.get(key, ""), str) for key in ("start_time", "end_time", "stdout", "stderr"))


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    enter_trace(trace_of(request.headers.get("traceparent")))
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _answer(error.status, f"{error.reason}: {request.method} {request.path[:200]}", "")
    except Exception as error:
        status, ours = translated(error, current_trace_id())
        if ours:
            log.exception("tes.failed", extra={"path": request.path[:200]})
        return _answer(_STATUS.get(status.code, 500), status.message, info_of(status).reason)


def _answer(status: int, message: str, reason: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == web.HTTPUnauthorized.status_code else None
    return web.json_response({"status_code": status, "msg": message, "reason": reason}, status=status, headers=headers)
