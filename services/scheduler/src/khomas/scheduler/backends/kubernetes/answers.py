"""Reads what a cluster tells of Jobs, pods and quotas."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from khomas.scheduler.backends.interface import ComputeResource, State
from khomas.scheduler.backends.spool.dialect import Status, UnreadableAnswerError

Object = Mapping[str, Any]
# What a pod waits for in vain.
_HOPELESS = frozenset({"InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull"})
_LIMITS = {"OOMKilled": "LIMIT_MEMORY", "DeadlineExceeded": "LIMIT_WALL"}
_LOST = frozenset(
    {
        "DisruptionTarget",
        "Evicted",
        "NodeAffinity",
        "OutOfcpu",
        "OutOfmemory",
        "Shutdown",
        "UnexpectedAdmissionError",
        "NodeLost",
        "Preempting",
        "Terminated",
        "NodeShutdown",
    }
)
# The image does not have what we start.
_UNSTARTED = frozenset({"ContainerCannotRun", "StartError"})
# Of what a cluster says, shown with the state.
_SENTENCE = 200
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_UNITS["Ti"] = 1 << 40


def items(text: str) -> list[Object]:
    """The objects of a list. Raises `UnreadableAnswerError`."""
    try:
        found: list[Object] = json.loads(text)["items"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableAnswerError(f"no list of objects: {error}") from None
    return found


def statuses(jobs: Sequence[Object], pods: Sequence[Object]) -> dict[str, Status]:
    """By name of the Job."""
    running = {pod["metadata"].get("labels", {}).get("job-name", ""): pod for pod in pods}
    told = {job["metadata"]["name"]: status(job, running.get(job["metadata"]["name"])) for job in jobs}
    # The Job has been deleted, its pod still ends.
    return told | {name: _of_pod(pod) for name, pod in running.items() if name and name not in told and alive(pod)}


def status(job: Object, pod: Object | None) -> Status:
    """What a Job and its pod tell of each other."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed"):
            return _ended(condition, pod)
    if pod is not None:
        return _of_pod(pod)
    held = job.get("spec", {}).get("suspend")
    return Status(State.QUEUED, "Suspended (its queue holds it back)" if held else "Pending (no pod yet)")


def _ended(condition: Object, pod: Object | None) -> Status:
    if condition["type"] == "Complete":
        return Status(State.SUCCEEDED, "Complete", node=_node(pod))
    container, told = container_state(pod).get("terminated", {}), (pod or {}).get("status", {})
    why = str(condition.get("reason", ""))
    words = [container.get("reason", ""), told.get("reason", ""), why, *_disrupted(pod)]
    reason = next((_LIMITS[word] for word in words if word in _LIMITS), "")
    if not reason and any(word in _LOST | _UNSTARTED for word in words):
        reason = "INFRA_ENVIRONMENT"
    unstarted = container.get("message", "") if container.get("reason") in _UNSTARTED else ""
    code = f"exit code {container['exitCode']}" if container.get("exitCode") else ""
    said = (why, condition.get("message", ""), told.get("reason", ""), told.get("message", ""), unstarted, code)
    return Status(
        State.FAILED,
        f"Failed ({why})" if why else "Failed",
        node=_node(pod),
        exit_code=container.get("exitCode"),
        reason=reason,
        message=": ".join(str(word) for word in said if word),
    )


def _of_pod(pod: Object) -> Status:
    phase = pod.get("status", {}).get("phase", "Pending")
    waits = container_state(pod).get("waiting", {})
    why, message = str(waits.get("reason", "")), str(waits.get("message", ""))
    if why in _HOPELESS:
        return Status(
            State.FAILED, f"{phase} ({why})", node=_node(pod), reason="INFRA_ENVIRONMENT", message=message or why
        )
    if phase == "Pending":
        why, message = (why, message) if why else _unscheduled(pod)
        said = f"{why}: {message}" if message else why
        return Status(State.QUEUED, f"{phase} ({said[:_SENTENCE]})" if said else phase)
    # Ended or not: the Job says how.
    return Status(State.RUNNING, phase, node=_node(pod), start_time=_started(pod))


def _unscheduled(pod: Object) -> tuple[str, str]:
    """Why no node takes it."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("reason", "")), str(condition.get("message", ""))
    return "", ""


def _disrupted(pod: Object | None) -> list[str]:
    """Whether the cluster took the pod's place away."""
    conditions = (pod or {}).get("status", {}).get("conditions") or ()
    return [str(one["type"]) for one in conditions if one.get("status") == "True"]


def record(pod: Object | None, token: str) -> Object | None:
    """The exit record that the wrapper left as the pod's termination message."""
    try:
        found = json.loads(container_state(pod).get("terminated", {}).get("message", ""))
    except ValueError:
        return None
    return found if isinstance(found, Mapping) and found.get("token") == token else None


def alive(pod: Object) -> bool:
    """Whether it runs or will."""
    return pod.get("status", {}).get("phase") in ("Pending", "Running")


def container_state(pod: Object | None) -> Object:
    """The state of the one container: waiting, running or terminated."""
    told = (pod or {}).get("status", {}).get("containerStatuses") or [{}]
    state: Object = told[0].get("state", {})
    return state


def _node(pod: Object | None) -> str:
    return str((pod or {}).get("spec", {}).get("nodeName", ""))


def _started(pod: Object) -> datetime | None:
    moment = container_state(pod).get("running", {}).get("startedAt") or pod["status"].get("startTime")
    return datetime.fromisoformat(moment) if moment else None


def namespace(quotas: Sequence[Object], pods: Sequence[Object], nodes: Sequence[Object]) -> ComputeResource:
    """The narrowest quota tells how much there is, else the nodes, where we may see them."""
    phases = [pod.get("status", {}).get("phase", "Pending") for pod in pods]
    cpu = [pair for quota in quotas if (pair := _pair(quota, "requests.cpu", "cpu")) is not None]
    memory = [pair for quota in quotas if (pair := _pair(quota, "requests.memory", "memory")) is not None]
    hard, used = min(cpu, default=(None, None), key=lambda pair: pair[0] - pair[1])
    usable = [node["status"]["allocatable"] for node in nodes if not node.get("spec", {}).get("unschedulable")]
    cores = [quantity(one["cpu"]) for one in usable if "cpu" in one]
    most = [*([hard] if hard is not None else []), *([max(cores)] if cores else [])]
    largest = [*(pair[0] for pair in memory), *_largest(usable)]
    return ComputeResource(
        queue="",
        cpu_milli=_milli(hard if hard is not None else sum(cores)) or None,
        max_cpu_milli=_milli(min(most)) if most else None,
        free_cpu_milli=None if hard is None or used is None else max(0, _milli(hard - used)),
        max_memory_bytes=int(min(largest)) if largest else None,
        running_jobs=phases.count("Running"),
        queued_jobs=phases.count("Pending"),
    )


def _largest(usable: Sequence[Object]) -> list[float]:
    memory = [quantity(one["memory"]) for one in usable if "memory" in one]
    return [max(memory)] if memory else []


def _milli(cores: float) -> int:
    """Thousandths of a core."""
    return round(1000 * cores)


def _pair(quota: Object, *names: str) -> tuple[float, float] | None:
    """What a quota allows, and what is used of it."""
    status = quota.get("status", {})
    for name in names:
        if name in status.get("hard", {}):
            return quantity(status["hard"][name]), quantity(status.get("used", {}).get(name, "0"))
    return None


def quantity(text: str) -> float:
    """Read a quantity as the cluster writes it: `250m`, `1.5Gi`."""
    found = re.fullmatch(r"([0-9.]+)(m|[KMGT]i|[kMGT]?)", text)
    if found is None:
        raise UnreadableAnswerError(f"no quantity: {text!r}")
    number, unit = found.groups()
    return float(number) / 1000 if unit == "m" else float(number) * _UNITS[unit]
