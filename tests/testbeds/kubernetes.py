"""A stand-in for a cluster: the API of Jobs with its rules; pods are processes of this machine (`kubernetes_node`)."""

import asyncio
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.testbeds.background import Background
from tests.testbeds.kubernetes_node import NAME, Node, decoded, log_piece
from tests.testbeds.kubernetes_rules import finished, merged, selected, wrong
from tests.testbeds.processes import free_ports

NAMESPACE = "khomas"
TOKEN = "stand-in-token"

Object = dict[str, Any]


@dataclass(slots=True)
class Cluster:
    """One namespace; a pod starts when its node has room for it."""

    folder: Path
    port: int
    cpu_milli: int
    # Lists that were begun are out of date, once.
    expired: bool = False
    _objects: dict[str, dict[str, Object]] = field(
        default_factory=lambda: {kind: {} for kind in ("jobs", "pods", "secrets", "configmaps")}
    )
    _deadlines: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _background: Background = field(default_factory=Background)
    _runner: web.AppRunner | None = None
    _node: Node = field(init=False)

    def __post_init__(self) -> None:
        """Make the node."""
        self._node = Node(self.folder / "node", self, self.cpu_milli)

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        """The token of a service account."""
        return self.folder / "token"

    @property
    def ca_file(self) -> None:
        """It speaks no TLS."""
        return

    @property
    def jobs(self) -> Mapping[str, Object]:
        """The Jobs by their names."""
        return self._objects["jobs"]

    def job(self, name: str) -> Object:
        """A Job as it was created."""
        return self._objects["jobs"][name]

    def kept(self, kind: str) -> Sequence[str]:
        """Names of the objects of a kind."""
        return tuple(self._objects[kind])

    def age(self, secret: str) -> None:
        """Make it look as if the submission that made this Secret had been killed an hour ago."""
        moment = datetime.now(UTC) - timedelta(hours=1)
        item = self._objects["secrets"].setdefault(secret, {"metadata": {"name": secret}})
        item["metadata"] = {
            "name": secret,
            "creationTimestamp": moment.isoformat(),
            "labels": {"khomas.io/group": "khomas"},
        }

    def start(self) -> None:
        """Let the API server answer."""
        self._background.do(self._serve())

    def stop(self) -> None:
        """Let the API server answer no more; pods go on."""
        self._background.do(self._leave())

    async def _serve(self) -> None:
        app = web.Application(middlewares=[_authorized], client_max_size=8 << 20)
        area = "/{area:api/v1|apis/batch/v1}/namespaces/{namespace}/{kind}"
        app.add_routes(
            [
                web.post(area, self.create),
                web.get(area, self.list),
                web.delete(area, self.delete_collection),
                web.patch(f"{area}/{{name}}", self.patch),
                web.delete(f"{area}/{{name}}", self.delete),
                web.get(f"{area}/{{name}}/log", self.log),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _leave(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --------------------------------------------------------------------------------------------- the API

    async def create(self, request: web.Request) -> web.Response:
        """Create an object."""
        item: Object = await request.json()
        kind, name = request.match_info["kind"], item["metadata"]["name"]
        if name in self._objects[kind]:
            return failed(409, "AlreadyExists", f'{kind} "{name}" already exists')
        why = wrong(kind, item)
        if why:
            return failed(422, "Invalid", why)
        more = {"namespace": NAMESPACE, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        item = {**item, "metadata": {**item["metadata"], **more}}
        self._objects[kind][name] = item
        if kind == "jobs":
            item["status"] = {}
            self._begin(item)
        return web.json_response(item, status=201)

    async def list(self, request: web.Request) -> web.Response:
        """Some objects with these labels, and how to get the next ones."""
        kind = request.match_info["kind"]
        begin = int(request.query.get("continue") or 0)
        if begin and self.expired:
            self.expired = False
            return failed(410, "Expired", "The provided continue parameter is too old")
        items = [self._quota()] if kind == "resourcequotas" else list(self._objects[kind].values())
        items = [one for one in items if selected(one["metadata"], request.query.get("labelSelector", ""))]
        end = begin + (int(request.query.get("limit") or 0) or len(items))
        rest = {"continue": str(end)} if end < len(items) else {}
        return web.json_response({"kind": "List", "metadata": rest, "items": items[begin:end]})

    async def patch(self, request: web.Request) -> web.Response:
        """Change an object by a merge patch."""
        kind, name = request.match_info["kind"], request.match_info["name"]
        if name not in self._objects[kind]:
            return failed(404, "NotFound", f'{kind} "{name}" not found')
        if request.content_type != "application/merge-patch+json":
            return failed(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        item = merged(self._objects[kind][name], await request.json())
        self._objects[kind][name] = item
        if kind == "jobs":
            self._watch_deadline(item)
        return web.json_response(item)

    async def delete(self, request: web.Request) -> web.Response:
        """Delete an object."""
        kind, name = request.match_info["kind"], request.match_info["name"]
        if name not in self._objects[kind]:
            return failed(404, "NotFound", f'{kind} "{name}" not found')
        self._delete(kind, name, await _grace(request))
        return web.json_response({"kind": "Status", "status": "Success"})

    async def delete_collection(self, request: web.Request) -> web.Response:
        """Delete all objects with these labels."""
        kind, grace = request.match_info["kind"], await _grace(request)
        chosen = request.query.get("labelSelector", "")
        for name, item in list(self._objects[kind].items()):
            if selected(item["metadata"], chosen):
                self._delete(kind, name, grace)
        return web.json_response({"kind": "Status", "status": "Success"})

    async def log(self, request: web.Request) -> web.Response:
        """What a pod printed."""
        pod = self._objects["pods"].get(request.match_info["name"])
        if pod is None:
            return failed(404, "NotFound", "pods not found")
        if not pod["spec"].get("nodeName"):
            return web.Response(text="")
        return web.Response(body=log_piece(self._node.log(pod["metadata"]["uid"]), request.query))

    def _quota(self) -> Object:
        running = [pod for pod in self._objects["pods"].values() if pod["status"]["phase"] == "Running"]
        used = sum(int(_container(pod)["resources"]["requests"]["cpu"].removesuffix("m")) for pod in running)
        status = {"hard": {"requests.cpu": f"{self.cpu_milli}m"}, "used": {"requests.cpu": f"{used}m"}}
        return {"metadata": {"name": "quota"}, "status": status}

    # --------------------------------------------------------------------------------- controllers of a cluster

    def _begin(self, job: Object) -> None:
        """Make a pod for a Job."""
        template, owner = job["spec"]["template"], job["metadata"]["name"]
        metadata: Object = {
            "name": f"{owner}-{uuid.uuid4().hex[:5]}",
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid4()),
            "labels": {**template["metadata"]["labels"], "job-name": owner},
        }
        pod = {"metadata": metadata, "spec": dict(template["spec"]), "status": {"phase": "Pending"}}
        self._objects["pods"][metadata["name"]] = pod
        self._watch_deadline(job)
        if not finished(job):
            self._node.see(pod)

    def _watch_deadline(self, job: Object) -> None:
        name, limit = job["metadata"]["name"], job["spec"].get("activeDeadlineSeconds")
        if name in self._deadlines:
            self._deadlines.pop(name).cancel()
        if limit is not None and not finished(job):
            passed = (datetime.now(UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"])).total_seconds()
            loop = asyncio.get_running_loop()
            self._deadlines[name] = loop.call_later(max(0, limit - passed), self._too_long, name)

    def _too_long(self, name: str) -> None:
        job = self._objects["jobs"].get(name)
        if job is not None and not finished(job):
            _conclude(job, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
            self._delete_pods(name)

    def _delete(self, kind: str, name: str, grace: int | None) -> None:
        if kind == "pods":
            self._delete_pod(self._objects["pods"][name], grace)
            return
        item = self._objects[kind].pop(name)
        if kind == "jobs":
            self._delete_pods(name)
            self._collect(item["metadata"]["uid"])

    def _delete_pods(self, job: str) -> None:
        for pod in list(self._objects["pods"].values()):
            if pod["metadata"]["labels"].get("job-name") == job:
                self._delete_pod(pod, None)

    def _delete_pod(self, pod: Object, grace: int | None) -> None:
        again = "deletionTimestamp" in pod["metadata"]
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        pod["metadata"].update(deletionTimestamp=_now(), deletionGracePeriodSeconds=seconds)
        if not pod["spec"].get("nodeName"):
            self._objects["pods"].pop(pod["metadata"]["name"])
            self._node.forget(pod)
        else:
            self._node.see(pod)
        job = self._objects["jobs"].get(pod["metadata"]["labels"].get("job-name", ""))
        if job is not None and not again and not finished(job):
            self._begin(job)  # a Job wants its pod

    def _collect(self, uid: str) -> None:
        """Delete what belonged to this one, and to nobody else who is still there."""
        there = {job["metadata"]["uid"] for job in self._objects["jobs"].values()}
        for kind in ("secrets", "configmaps"):
            for name, item in list(self._objects[kind].items()):
                owners = {owner["uid"] for owner in item["metadata"].get("ownerReferences", ())}
                if uid in owners and not owners & there:
                    del self._objects[kind][name]

    # What the node tells: see `kubernetes_node.Cluster`.

    async def bind(self, pod: Object) -> None:
        """Note where it runs."""
        pod["spec"]["nodeName"] = NAME

    async def report(self, pod: Object, status: Object) -> None:
        """Note how a pod is, and what that means for its Job."""
        pod["status"] = {**pod["status"], **status}
        job = self._objects["jobs"].get(pod["metadata"]["labels"].get("job-name", ""))
        if job is None or finished(job) or "deletionTimestamp" in pod["metadata"]:
            return
        if status["phase"] == "Succeeded":
            _conclude(job, "Complete", "", "")
        elif status["phase"] == "Failed":
            _conclude(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    async def gone(self, pod: Object) -> None:
        """Forget a pod."""
        self._objects["pods"].pop(pod["metadata"]["name"], None)

    async def content(self, namespace: str, kind: str, name: str) -> Mapping[str, bytes] | None:
        """The entries of a ConfigMap or Secret."""
        item = self._objects[f"{kind.lower()}s"].get(name)
        if item is None:
            return None
        plain = {key: text.encode() for key, text in (item.get("stringData") or item.get("data") or {}).items()}
        return decoded(item["data"]) if kind == "secret" and "data" in item else plain

    async def _end(self) -> None:
        await self._leave()
        for handle in self._deadlines.values():
            handle.cancel()
        await self._node.stop()


@contextmanager
def running(folder: Path, cores: int = 32) -> Iterator[Cluster]:
    """Start it; end its pods afterwards."""
    [port] = free_ports(1)
    cluster = Cluster(folder, port, 1000 * cores)
    cluster.token_file.write_text(f"{TOKEN}\n")
    with cluster._background.living("cluster"):
        cluster.start()
        try:
            yield cluster
        finally:
            cluster._background.do(cluster._end())


@web.middleware
async def _authorized(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return failed(401, "Unauthorized", "Unauthorized")
    if request.match_info.get("namespace") != NAMESPACE:
        return failed(403, "Forbidden", f'User "khomas-jobs" cannot {request.method.lower()} here')
    response: web.StreamResponse = await handler(request)
    return response


def failed(status: int, reason: str, message: str) -> web.Response:
    """How an API server says no."""
    return web.json_response({"kind": "Status", "reason": reason, "message": message, "code": status}, status=status)


async def _grace(request: web.Request) -> int | None:
    with suppress(ValueError):
        grace: int | None = (await request.json()).get("gracePeriodSeconds")
        return grace
    return None


def _conclude(job: Object, kind: str, reason: str, message: str) -> None:
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    job["status"] = {"conditions": [condition]}


def _container(pod: Object) -> Object:
    container: Object = pod["spec"]["containers"][0]
    return container


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
