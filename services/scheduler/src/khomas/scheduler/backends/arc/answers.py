"""What the answers of an ARC CE mean. Its JSON is made of XML: one of a kind is an object, several are a list."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from khomas.scheduler.backends.interface import ComputeResource, State, Usage

# https://www.nordugrid.org/arc/arc7/tech/rest/rest.html#rest-interface-job-states
STATES: Mapping[str, State] = {
    "ACCEPTING": State.QUEUED,
    "ACCEPTED": State.QUEUED,
    "PREPARING": State.QUEUED,
    "PREPARED": State.QUEUED,
    "SUBMITTING": State.QUEUED,
    "QUEUING": State.QUEUED,
    "HELD": State.QUEUED,
    "RUNNING": State.RUNNING,
    "SUSPENDED": State.SUSPENDED,
    "EXITINGLRMS": State.RUNNING,
    "OTHER": State.RUNNING,
    "EXECUTED": State.RUNNING,
    "FINISHING": State.RUNNING,
    "KILLING": State.RUNNING,
    "FINISHED": State.SUCCEEDED,
    "FAILED": State.FAILED,
    "KILLED": State.CANCELLED,
}
ENDED = tuple(name for name, state in STATES.items() if state.final)
# With one of these the batch system may have begun with it. The list of jobs tells the state as it is now, but takes
# all that are with the batch system for running.
HANDED_ON = ("SUBMITTING", "RUNNING", "EXECUTED", "FINISHING", "KILLING")
CANCELLED = "canceled by external request"
_MIB = 1 << 20
_UNLIMITED = 999_999_999


def entries(document: Any, name: str) -> list[Mapping[str, Any]]:
    """All objects of this name."""
    found = document.get(name, []) if isinstance(document, Mapping) else []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, Mapping)]


def versions(document: Any) -> list[str]:
    """Versions of the interface."""
    found = document.get("version", []) if isinstance(document, Mapping) else []
    return [str(one) for one in (found if isinstance(found, list) else [found])]


def code(entry: Mapping[str, Any] | None) -> int:
    """The CE's own status of one entry of an answer; 0 when it said nothing of it."""
    return int(entry.get("status-code", 0)) if entry else 0


def activity(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The GLUE2 document of a job, as far as there is one by now."""
    info = entry.get("info_document")
    found = info.get("ComputingActivity") if isinstance(info, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def job_name(local: str) -> str:
    """Name of a job in the CE's own notes about it, which are there at once."""
    found = re.search(r"(?m)^jobname=(.*)$", local)
    return found.group(1).strip() if found else ""


def usage_of(document: Mapping[str, Any]) -> Usage | None:
    """What the batch system has accounted."""
    wall, cpu = number(document.get("UsedTotalWallTime")), number(document.get("UsedTotalCPUTime"))
    if wall is None and cpu is None:
        return None
    memory = number(document.get("UsedMainMemory")) or 0
    slots = number(document.get("RequestedSlots")) or 1
    return Usage(wall_s=(wall or 0) / max(1, slots), cpu_user_s=cpu or 0, max_memory_bytes=memory * _MIB)


def resources(document: Any) -> list[ComputeResource]:
    """Queues of a CE."""
    service: Any = document
    for name in ("Domains", "AdminDomain", "Services", "ComputingService"):
        service = next(iter(entries(service, name)), {})
    manager = next(iter(entries(service, "ComputingManager")), {})
    slots = number(manager.get("TotalSlots")) or number(manager.get("TotalLogicalCPUs"))
    return [_resource(share, slots) for share in entries(service, "ComputingShare")]


def _resource(share: Mapping[str, Any], slots: int | None) -> ComputeResource:
    cpu = slots * 1000 if slots else None
    free = number(share.get("FreeSlots"))
    most = number(share.get("MaxSlotsPerJob"))
    memory = number(share.get("MaxMainMemory")) or number(share.get("MaxVirtualMemory"))
    seconds = number(share.get("MaxWallTime"))
    before = number(share.get("PreLRMSWaitingJobs")) or 0
    state = str(share.get("ServingState", "production"))
    return ComputeResource(
        queue=str(share.get("MappingQueue") or share.get("Name", "")),
        cpu_milli=cpu,
        max_cpu_milli=most * 1000 if most else None,
        free_cpu_milli=None if free is None else min(free * 1000, cpu or free * 1000),
        max_memory_bytes=memory * _MIB if memory else None,
        max_wall_time=timedelta(seconds=seconds) if seconds else None,
        running_jobs=number(share.get("RunningJobs")),
        queued_jobs=_sum(number(share.get("WaitingJobs")), before),
        message="" if state == "production" else f"the queue says {state}",
        closed=state != "production",
    )


def _sum(waiting: int | None, before: int) -> int | None:
    return None if waiting is None else waiting + before


def number(value: Any) -> int | None:
    """A figure of GLUE2; None for what is not known or stands for "no limit"."""
    try:
        found = int(float(value))
    except (TypeError, ValueError):
        return None
    return found if 0 <= found < _UNLIMITED else None
