"""A stand-in for a cluster: the API of Jobs and pods with its rules, and pods that are processes of this machine."""

import asyncio
import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.testbeds.processes import free_ports

NAMESPACE = "khomas"
TOKEN = "stand-in-token"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"|[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9./:_-]+")
_SELECTOR = re.compile(r"([\w./-]+)(?:=(.*)| in \((.*)\))")
_BATCH, _CORE = "/apis/batch/v1/namespaces/{namespace}", "/api/v1/namespaces/{namespace}"
Object = dict[str, Any]


@dataclass(slots=True)
class Pod:
    """A pod, and the process that stands for its container."""

    job: str
    item: Object
    process: asyncio.subprocess.Process | None = None
    ends: asyncio.Task[None] | None = None

    @property
    def cpu_milli(self) -> int:
        return int(self.item["spec"]["containers"][0]["resources"]["requests"]["cpu"].removesuffix("m"))


@dataclass(slots=True)
class Cluster:
    """One namespace; a pod starts when the quota has room for it."""

    folder: Path
    port: int
    cpu_milli: int
    jobs: dict[str, Object] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        """The token of a service account."""
        return self.folder / "token"

    def start(self) -> None:
        """Let the API server answer."""
        self._do(self._serve())

    def stop(self) -> None:
        """Let the API server answer no more; pods go on."""
        self._do(self._leave())

    async def _serve(self) -> None:
        app = web.Application(middlewares=[_authorized])
        app.add_routes(
            [
                web.post(f"{_BATCH}/jobs", self.create),
                web.get(f"{_BATCH}/jobs", self.list_jobs),
                web.delete(f"{_BATCH}/jobs/{{name}}", self.delete),
                web.get(f"{_CORE}/pods", self.list_pods),
                web.get(f"{_CORE}/resourcequotas", self.list_quotas),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _leave(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # --------------------------------------------------------------------------------------------- the API

    async def create(self, request: web.Request) -> web.Response:
        """Create a Job."""
        job: Object = await request.json()
        name, labels = job["metadata"]["name"], job["metadata"].get("labels", {})
        if name in self.jobs:
            return _failed(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        template = job["spec"]["template"]["spec"]
        if not _NAME.fullmatch(name) or not all(_LABEL.fullmatch(value) for value in labels.values()):
            return _failed(422, "Invalid", f'Job.batch "{name}" is invalid: metadata: Invalid value')
        if template.get("restartPolicy") not in ("Never", "OnFailure"):
            return _failed(422, "Invalid", "spec.template.spec.restartPolicy: Required value")
        mounted = {mount["name"] for mount in template["containers"][0]["volumeMounts"]}
        if mounted - {volume["name"] for volume in template["volumes"]}:
            return _failed(422, "Invalid", "spec.template.spec.containers[0].volumeMounts[0].name: Not found")
        self.jobs[name] = {**job, "status": {}}
        metadata = {"name": f"{name}-0", "labels": {**job["spec"]["template"]["metadata"]["labels"], "job-name": name}}
        pod = Pod(name, {"metadata": metadata, "spec": dict(template), "status": {"phase": "Pending"}})
        self.pods[f"{name}-0"] = pod
        await self._fill()
        return web.json_response(self.jobs[name], status=201)

    async def delete(self, request: web.Request) -> web.Response:
        """Delete a Job, and its pod in the background."""
        name = request.match_info["name"]
        if self.jobs.pop(name, None) is None:
            return _failed(404, "NotFound", f'jobs.batch "{name}" not found')
        pod = self.pods[f"{name}-0"]
        if pod.process is None or pod.process.returncode is not None:
            del self.pods[f"{name}-0"]
        else:
            pod.process.terminate()
        await self._fill()
        return web.json_response({"kind": "Status", "status": "Success"})

    async def list_jobs(self, request: web.Request) -> web.Response:
        """Jobs with these labels."""
        return _listed(request, list(self.jobs.values()))

    async def list_pods(self, request: web.Request) -> web.Response:
        """Pods with these labels."""
        return _listed(request, [pod.item for pod in self.pods.values()])

    async def list_quotas(self, request: web.Request) -> web.Response:
        """What the namespace may have."""
        status = {"hard": {"requests.cpu": f"{self.cpu_milli}m"}, "used": {"requests.cpu": f"{self._used()}m"}}
        return _listed(request, [{"metadata": {"name": "quota"}, "status": status}])

    # ------------------------------------------------------------------------------------ the rest of a cluster

    def _used(self) -> int:
        return sum(pod.cpu_milli for pod in self.pods.values() if pod.item["status"]["phase"] == "Running")

    async def _fill(self) -> None:
        """Start what there is room for."""
        room = self.cpu_milli - self._used()
        for pod in list(self.pods.values()):
            if pod.item["status"]["phase"] == "Pending" and pod.cpu_milli <= room:
                room -= pod.cpu_milli
                await self._start(pod)

    async def _start(self, pod: Pod) -> None:
        container = pod.item["spec"]["containers"][0]
        if not _IMAGE.fullmatch(container["image"]):
            why = {"reason": "InvalidImageName", "message": f"Failed to apply default image tag {container['image']!r}"}
            pod.item["status"]["containerStatuses"] = [{"name": container["name"], "state": {"waiting": why}}]
            return
        now = _now()
        pod.item["spec"]["nodeName"] = "node-1"
        running = {"name": container["name"], "state": {"running": {"startedAt": now}}}
        pod.item["status"] = {"phase": "Running", "startTime": now, "containerStatuses": [running]}
        pod.process = await asyncio.create_subprocess_exec(
            *container["command"],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOSTNAME": pod.item["metadata"]["name"]},
            start_new_session=True,
        )
        pod.ends = asyncio.create_task(self._watch(pod))

    async def _watch(self, pod: Pod) -> None:
        """Note how a pod ends, or end it at the deadline of its Job."""
        assert pod.process is not None
        limit = self.jobs[pod.job]["spec"].get("activeDeadlineSeconds") if pod.job in self.jobs else None
        condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
        try:
            await asyncio.wait_for(pod.process.wait(), limit)
        except TimeoutError:
            condition["reason"] = "DeadlineExceeded"
            _kill(pod.process)
            await pod.process.wait()
        code = pod.process.returncode or 0
        pod.item["status"]["phase"] = "Failed" if code else "Succeeded"
        ended = {"terminated": {"exitCode": code if code >= 0 else 128 - code, "finishedAt": _now()}}
        pod.item["status"]["containerStatuses"] = [{"name": "job", "state": ended}]
        if pod.job in self.jobs:
            good = {"type": "Complete", "status": "True"}
            self.jobs[pod.job]["status"] = {"conditions": [condition if code else good]}
        else:
            self.pods.pop(pod.item["metadata"]["name"], None)
        await self._fill()

    async def _end(self) -> None:
        await self._leave()
        watches = [pod.ends for pod in self.pods.values() if pod.ends is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for pod in self.pods.values():
            if pod.process is not None and pod.process.returncode is None:
                _kill(pod.process)
                await pod.process.wait()

    @contextmanager
    def _living(self) -> Iterator[None]:
        thread = threading.Thread(target=self._loop.run_forever, name="cluster")
        thread.start()
        try:
            yield
            self._do(self._end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()


@contextmanager
def running(folder: Path, cores: int = 32) -> Iterator[Cluster]:
    """Start it; end its pods afterwards."""
    [port] = free_ports(1)
    cluster = Cluster(folder, port, 1000 * cores)
    cluster.token_file.write_text(f"{TOKEN}\n")
    with cluster._living():
        cluster.start()
        yield cluster


@web.middleware
async def _authorized(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return _failed(401, "Unauthorized", "Unauthorized")
    if request.match_info.get("namespace") != NAMESPACE:
        return _failed(403, "Forbidden", "the service account may not do this in the namespace")
    response: web.StreamResponse = await handler(request)
    return response


def _failed(status: int, reason: str, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=status)


def _listed(request: web.Request, items: list[Object]) -> web.Response:
    selector = request.query.get("labelSelector", "")
    return web.json_response({"items": [one for one in items if _selected(one["metadata"], selector)]})


def _selected(metadata: Mapping[str, Any], selector: str) -> bool:
    if not selector:
        return True
    found = _SELECTOR.fullmatch(selector)
    if found is None:
        raise web.HTTPBadRequest(text=f"unable to parse requirement: {selector}")
    key, one, some = found.groups()
    return metadata.get("labels", {}).get(key) in ([one] if one is not None else some.split(","))


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
