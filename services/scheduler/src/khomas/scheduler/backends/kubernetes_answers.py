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
_LOST = frozenset({"Evicted", "NodeLost", "Preempting", "Terminated", "NodeShutdown"})
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
    names = [job["metadata"]["name"] for job in jobs]
    told = {name: _status(job, running.get(name)) for name, job in zip(names, jobs, strict=True)}
    # The Job has been deleted, its pod still ends.
    return told | {name: _of_pod(pod) for name, pod in running.items() if name and name not in told and _alive(pod)}


def _status(job: Object, pod: Object | None) -> Status:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed"):
            return _ended(condition, pod)
    return _of_pod(pod) if pod is not None else Status(State.QUEUED, "Pending")


def _ended(condition: Object, pod: Object | None) -> Status:
    if condition["type"] == "Complete":
        return Status(State.SUCCEEDED, "Complete", node=_node(pod))
    container = _container(pod).get("terminated", {})
    why = str(condition.get("reason", ""))
    words = [container.get("reason", ""), (pod or {}).get("status", {}).get("reason", ""), why]
    reason = next((_LIMITS[word] for word in words if word in _LIMITS), "")
    if not reason and any(word in _LOST for word in words):
        reason = "INFRA_ENVIRONMENT"
    said = ": ".join(word for word in (why, str(condition.get("message", ""))) if word)
    return Status(
        State.FAILED,
        f"Failed ({why})" if why else "Failed",
        node=_node(pod),
        exit_code=container.get("exitCode"),
        reason=reason,
        message=said,
    )


def _of_pod(pod: Object) -> Status:
    phase = pod.get("status", {}).get("phase", "Pending")
    waits = _container(pod).get("waiting", {})
    why = str(waits.get("reason", ""))
    native = f"{phase} ({why})" if why else phase
    if why in _HOPELESS:
        message = str(waits.get("message", "")) or why
        return Status(State.FAILED, native, node=_node(pod), reason="INFRA_ENVIRONMENT", message=message)
    if phase == "Pending":
        return Status(State.QUEUED, native)
    # Ended or not: the Job says how.
    return Status(State.RUNNING, native, node=_node(pod), start_time=_started(pod))


def _alive(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Pending", "Running")


def _container(pod: Object | None) -> Object:
    told = (pod or {}).get("status", {}).get("containerStatuses") or [{}]
    state: Object = told[0].get("state", {})
    return state


def _node(pod: Object | None) -> str:
    return str((pod or {}).get("spec", {}).get("nodeName", ""))


def _started(pod: Object) -> datetime | None:
    moment = _container(pod).get("running", {}).get("startedAt") or pod["status"].get("startTime")
    return datetime.fromisoformat(moment) if moment else None


def namespace(quotas: Sequence[Object], pods: Sequence[Object]) -> ComputeResource:
    """The narrowest quota tells how much there is; without one nothing is known."""
    phases = [pod.get("status", {}).get("phase", "Pending") for pod in pods]
    cpu = [pair for quota in quotas if (pair := _pair(quota, "requests.cpu", "cpu")) is not None]
    memory = [pair for quota in quotas if (pair := _pair(quota, "requests.memory", "memory")) is not None]
    hard, used = min(cpu, default=(None, None), key=lambda pair: pair[0] - pair[1])
    return ComputeResource(
        queue="",
        cpu_milli=_milli(hard) or None,
        max_cpu_milli=_milli(hard) or None,
        free_cpu_milli=None if hard is None or used is None else max(0, _milli(hard - used)),
        max_memory_bytes=int(min(pair[0] for pair in memory)) if memory else None,
        running_jobs=phases.count("Running"),
        queued_jobs=phases.count("Pending"),
    )


def _milli(cores: float | None) -> int:
    """Thousandths of a core."""
    return 0 if cores is None else round(1000 * cores)


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
