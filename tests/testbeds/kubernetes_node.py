"""A stand-in for a node of a cluster: its pods are processes of this machine.

What a container would see under its mount paths is on this machine elsewhere, so paths in the command and in the
environment are translated; a claim of a volume is the folder that the tests share under the same path.
"""

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from khomas.scheduler.backends.kubernetes.answers import quantity

NAME = "node-1"
_IMAGE = re.compile(r"[a-z0-9./:_-]+")
_RETRY_SECONDS = 0.5
_MESSAGE_BYTES = 4096
Object = dict[str, Any]


class Cluster(Protocol):
    """What a node tells the API server, and asks it for."""

    async def bind(self, pod: Object) -> None:
        """Say that the pod runs here."""

    async def report(self, pod: Object, status: Object) -> None:
        """Write the status of a pod."""

    async def gone(self, pod: Object) -> None:
        """Say that a pod which was to be deleted has ended."""

    async def content(self, namespace: str, kind: str, name: str) -> Mapping[str, bytes] | None:
        """The entries of a ConfigMap or Secret; None when there is no such object."""


@dataclass(slots=True)
class _Pod:
    item: Object
    folder: Path
    # Held by its containers until they have ended.
    cpu_milli: int = 0
    process: asyncio.subprocess.Process | None = None
    life: asyncio.Task[None] | None = None
    end: asyncio.Task[None] | None = None
    grace: float = float("inf")


@dataclass(slots=True)
class Node:
    """Runs pods, the oldest first, as long as there is room."""

    folder: Path
    cluster: Cluster
    cpu_milli: int
    _pods: dict[str, _Pod] = field(default_factory=dict)
    # Have ended; what the API server says of them may be late.
    _ended: set[str] = field(default_factory=set)

    def see(self, item: Object) -> None:
        """Take note of a pod that is new or has changed."""
        uid = item["metadata"]["uid"]
        if uid in self._ended or item["status"].get("phase") in ("Succeeded", "Failed"):
            if uid not in self._pods and item["metadata"].get("deletionTimestamp"):
                _later(self.cluster.gone(item))
            return
        pod = self._pods.setdefault(uid, _Pod(item, self.folder / "pods" / uid))
        pod.item = item
        if item["metadata"].get("deletionTimestamp"):
            self._end(pod, float(item["metadata"].get("deletionGracePeriodSeconds") or 0))
        self.fill()

    def forget(self, item: Object) -> None:
        """Take note of a pod that is not in the cluster any more."""
        pod = self._pods.get(item["metadata"]["uid"])
        if pod is not None:
            self._end(pod, 0)

    def fill(self) -> None:
        """Start what there is room for."""
        room = self.cpu_milli - sum(pod.cpu_milli for pod in self._pods.values())
        for pod in list(self._pods.values()):
            wanted = _cpu_milli(pod.item)
            if pod.life is None and pod.end is None and wanted <= room:
                room -= wanted
                pod.cpu_milli = wanted
                pod.life = asyncio.create_task(self._live(pod))
            elif pod.life is None and wanted > self.cpu_milli and not pod.item["status"].get("conditions"):
                pod.item["status"]["conditions"] = [_UNSCHEDULABLE]
                _later(self.cluster.report(pod.item, {"phase": "Pending", "conditions": [_UNSCHEDULABLE]}))

    def log(self, uid: str) -> Path:
        """What the container of a pod printed."""
        return self.folder / "logs" / uid

    async def stop(self) -> None:
        """End every pod at once, and tell nobody."""
        tasks = [task for pod in self._pods.values() for task in (pod.life, pod.end) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pod in self._pods.values():
            if pod.process is not None and pod.process.returncode is None:
                _kill(pod.process)
                await pod.process.wait()

    def _forget(self, pod: _Pod) -> None:
        if pod.end is not None and pod.end is not asyncio.current_task():
            pod.end.cancel()
        self._ended.add(pod.item["metadata"]["uid"])
        self._pods.pop(pod.item["metadata"]["uid"], None)

    # ------------------------------------------------------------------------------------------ one pod

    async def _live(self, pod: _Pod) -> None:
        """From the binding to the last report."""
        container = pod.item["spec"]["containers"][0]
        if not pod.item["spec"].get("nodeName"):
            await self.cluster.bind(pod.item)
        try:
            if not _IMAGE.fullmatch(container["image"]):
                why = f"Failed to apply default image tag {container['image']!r}"
                await self._waiting(pod, "InvalidImageName", why)
                return
            paths = await self._volumes(pod)
            await self._run(pod, container, paths)
        finally:
            pod.cpu_milli = 0
            shutil.rmtree(pod.folder, ignore_errors=True)
        self._forget(pod)
        if pod.item["metadata"].get("deletionTimestamp"):
            await self.cluster.gone(pod.item)
        self.fill()

    async def _run(self, pod: _Pod, container: Object, paths: Mapping[str, str]) -> None:
        log = self.log(pod.item["metadata"]["uid"])
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOSTNAME": pod.item["metadata"]["name"]}
        env |= {one["name"]: _translated(one.get("value", ""), paths) for one in container.get("env", ())}
        words = [_translated(word, paths) for word in [*container["command"], *container.get("args", ())]]
        with log.open("ab") as stream:
            pod.process = await asyncio.create_subprocess_exec(
                *_as_user(pod.item),
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=_translated(container.get("workingDir", ""), paths) or pod.folder,
                env=env,
                start_new_session=True,
            )
        began = _now()
        status = {"phase": "Running", "startTime": began, "conditions": []}
        await self.cluster.report(pod.item, {**status, **_statuses(container, running={"startedAt": began})})
        why = await _until_end(pod.process, pod.item["spec"].get("activeDeadlineSeconds"))
        code = pod.process.returncode or 0
        ended = {
            "exitCode": code if code >= 0 else 128 - code,
            "reason": "Error" if code else "Completed",
            "startedAt": began,
            "finishedAt": _now(),
            "message": _message(paths[_message_path(container)]),
        }
        phase = "Failed" if code or why else "Succeeded"
        status |= why
        await self.cluster.report(pod.item, {**status, "phase": phase, **_statuses(container, terminated=ended)})

    async def _waiting(self, pod: _Pod, reason: str, message: str) -> None:
        why = {"reason": reason, "message": message}
        container = pod.item["spec"]["containers"][0]
        await self.cluster.report(pod.item, {"phase": "Pending", **_statuses(container, waiting=why)})

    async def _volumes(self, pod: _Pod) -> dict[str, str]:
        """Make the volumes; say where on this machine their mount paths are."""
        spec = pod.item["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        pod.folder.mkdir(parents=True)
        paths = {_message_path(spec["containers"][0]): str(pod.folder / "termination-log")}
        for mount in spec["containers"][0].get("volumeMounts", ()):
            volume, place = volumes[mount["name"]], pod.folder / mount["name"]
            for kind, key in (("secret", "secretName"), ("configMap", "name")):
                if kind in volume:
                    await self._write(pod, kind, volume[kind], volume[kind][key], place)
            if "emptyDir" in volume:
                place.mkdir()
            if place.exists():
                _give(place, pod.item)
                paths[mount["mountPath"]] = str(place)
        _give(pod.folder, pod.item)
        return paths

    async def _write(self, pod: _Pod, kind: str, volume: Object, name: str, place: Path) -> None:
        """Write a ConfigMap or Secret as files, once it is there."""
        told = False
        while (found := await self.cluster.content(pod.item["metadata"]["namespace"], kind, name)) is None:
            if not told:
                await self._waiting(pod, "ContainerCreating", "")
                told = True
            await asyncio.sleep(_RETRY_SECONDS)
        wanted = volume.get("items") or [{"key": key, "path": key} for key in found]
        _fill_folder(place, {item["path"]: found[item["key"]] for item in wanted})

    def _end(self, pod: _Pod, grace: float) -> None:
        """SIGTERM, and SIGKILL after the grace; a later order can only shorten it."""
        if grace >= pod.grace:
            return
        pod.grace = grace
        if pod.end is not None:
            pod.end.cancel()
        pod.end = asyncio.create_task(self._ending(pod, grace))

    async def _ending(self, pod: _Pod, grace: float) -> None:
        if pod.process is None:
            if pod.life is not None:
                pod.life.cancel()
                await asyncio.gather(pod.life, return_exceptions=True)
            self._forget(pod)
            await self.cluster.gone(pod.item)
            self.fill()
        elif pod.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                pod.process.terminate()
            await asyncio.sleep(grace)
            if pod.process.returncode is None:
                _kill(pod.process)


_UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient cpu.",
}
_under_way: set[asyncio.Task[None]] = set()


def _later(work: Any) -> None:
    """Do it, and keep it alive until it is done."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)


def _cpu_milli(item: Object) -> int:
    asked = item["spec"]["containers"][0].get("resources", {}).get("requests", {}).get("cpu", "0")
    return round(1000 * quantity(str(asked)))


async def _until_end(process: asyncio.subprocess.Process, seconds: float | None) -> Object:
    """Wait for a container, or end it when its pod may not live longer."""
    try:
        await asyncio.wait_for(process.wait(), seconds)
        return {}
    except TimeoutError:
        _kill(process)
        await process.wait()
        return {
            "reason": "DeadlineExceeded",
            "message": "Pod was active on the node longer than the specified deadline",
        }


def _statuses(container: Object, **state: Object) -> Object:
    told = {"name": container["name"], "image": container["image"], "imageID": "", "ready": "running" in state}
    return {"containerStatuses": [{**told, "restartCount": 0, "state": state}]}


def _message_path(container: Object) -> str:
    return str(container.get("terminationMessagePath") or "/dev/termination-log")


def _message(path: str) -> str:
    try:
        return Path(path).read_bytes()[:_MESSAGE_BYTES].decode("utf-8", "replace")
    except OSError:
        return ""


def _translated(word: str, paths: Mapping[str, str]) -> str:
    for inside, here in paths.items():
        if word == inside or word.startswith(f"{inside}/"):
            return here + word[len(inside) :]
    return word


def _as_user(item: Object) -> list[str]:
    """What goes before a command of whom the pod wants to be, where this machine lets us."""
    asked = item["spec"].get("securityContext", {})
    if os.geteuid() != 0 or "runAsUser" not in asked:
        return []
    # Not by the arguments of the same names: for those Python forks, which threads in gRPC do not always survive.
    user = asked["runAsUser"]
    return ["setpriv", f"--reuid={user}", f"--regid={asked.get('runAsGroup', user)}", "--clear-groups", "--"]


def _fill_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _give(folder: Path, item: Object) -> None:
    asked = item["spec"].get("securityContext", {})
    if os.geteuid() == 0 and asked.get("runAsUser"):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, asked["runAsUser"], asked.get("runAsGroup", -1))


def _kill(process: asyncio.subprocess.Process) -> None:
    """End all that is in the container, whatever session it is in."""
    for pid in _tree(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tree(pid: int) -> Sequence[int]:
    found = [pid]
    for one in found:
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, listing.read_text().split())
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def decoded(data: Mapping[str, str] | None) -> dict[str, bytes]:
    """The entries of a Secret."""
    return {key: base64.b64decode(text) for key, text in (data or {}).items()}


def log_piece(log: Path, query: Mapping[str, str]) -> bytes:
    """What a node answers when asked for a log."""
    text = log.read_bytes() if log.is_file() else b""
    if "tailLines" in query:
        lines = text.splitlines(keepends=True)
        text = b"".join(lines[max(0, len(lines) - int(query["tailLines"])) :])
    return text[: int(query["limitBytes"])] if "limitBytes" in query else text
