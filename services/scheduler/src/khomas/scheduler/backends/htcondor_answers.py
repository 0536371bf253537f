"""Reads what HTCondor tells of jobs, past jobs and slots: ads, as `htcondor_worker.py` prints them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from khomas.scheduler.backends.interface import ComputeResource, State, Usage
from khomas.scheduler.backends.spool.dialect import Status

Ad = Mapping[str, Any]
KIB = 1 << 10
MIB = 1 << 20
JOB = (
    "ClusterId",
    "ProcId",
    "JobStatus",
    "JobCurrentStartDate",
    "RemoteHost",
    "LastRemoteHost",
    "HoldReason",
    "HoldReasonCode",
    "EnteredCurrentStatus",
)
PAST = (
    *JOB,
    "ExitCode",
    "ExitBySignal",
    "ExitSignal",
    "RemoveReason",
    "LastHoldReason",
    "LastHoldReasonCode",
    "RemoteWallClockTime",
    "RemoteUserCpu",
    "RemoteSysCpu",
    "ResidentSetSize_RAW",
    "ResidentSetSize",
    "DiskUsage",
)
SLOT = ("Name", "PartitionableSlot", "DynamicSlot", "Cpus", "TotalSlotCpus", "TotalSlotMemory", "State", "OpSysAndVer")
SCHEDD = ("Name", "TotalRunningJobs", "TotalIdleJobs")
_IDLE, _RUNNING, _REMOVED, _COMPLETED, _HELD, _TRANSFERRING, _SUSPENDED = range(1, 8)
_NAMES = {
    _IDLE: "IDLE",
    _RUNNING: "RUNNING",
    _REMOVED: "REMOVED",
    _COMPLETED: "COMPLETED",
    _HELD: "HELD",
    _TRANSFERRING: "TRANSFERRING_OUTPUT",
    _SUSPENDED: "SUSPENDED",
}
_STATES = {
    _IDLE: State.QUEUED,
    _RUNNING: State.RUNNING,
    # It stays until its wrapper has ended.
    _REMOVED: State.RUNNING,
    _COMPLETED: State.SUCCEEDED,
    _TRANSFERRING: State.RUNNING,
    _SUSPENDED: State.SUSPENDED,
}
# Held by a person, or on its way in: it goes on when released.
_PATIENT = frozenset({1, 15, 16})
# Why the others are held, https://htcondor.readthedocs.io/en/latest/classad-attributes/job-classad-attributes.html.
_HELD_BY = {34: "LIMIT_MEMORY", 46: "LIMIT_WALL", 47: "LIMIT_WALL", 104: "LIMIT_DISK"}


def statuses(ads: Sequence[Ad]) -> dict[str, Status]:
    """By native id; a cluster of one job goes by its number alone too."""
    return {name: status for ad in ads for status in [status_of(ad)] for name in names_of(ad)}


def accounts(ads: Sequence[Ad]) -> dict[str, tuple[Status, Usage]]:
    """Jobs that have left the queue, by native id."""
    return {name: told for ad in ads for told in [(past_of(ad), usage_of(ad))] for name in names_of(ad)}


def names_of(ad: Ad) -> list[str]:
    """What the job is called: `417.3`; the first one of a cluster also `417`."""
    cluster, process = ad["ClusterId"], ad["ProcId"]
    return [f"{cluster}.{process}", *([str(cluster)] if process == 0 else [])]


def status_of(ad: Ad) -> Status:
    """A job in the queue. One that is held by HTCondor itself would be held again: it has failed."""
    number = ad["JobStatus"]
    if number == _HELD:
        return _held(ad)
    return Status(
        _STATES.get(number, State.UNKNOWN),
        _NAMES.get(number, str(number)),
        node=_node(ad),
        start_time=_moment(ad.get("JobCurrentStartDate")),
    )


def _held(ad: Ad) -> Status:
    code, why = ad.get("HoldReasonCode", 0), str(ad.get("HoldReason", ""))
    told = f"HELD ({why})" if why else "HELD"
    if code in _PATIENT:
        return Status(State.QUEUED, told)
    return Status(State.FAILED, told, node=_node(ad), reason=_HELD_BY.get(code, "INFRA_ENVIRONMENT"), message=why)


def past_of(ad: Ad) -> Status:
    """How a job left the queue."""
    if ad["JobStatus"] == _REMOVED:
        why = str(ad.get("RemoveReason", ""))
        return _given_up(ad) if "PeriodicRemove" in why else _ended(ad, State.CANCELLED, why)
    if ad.get("ExitBySignal"):
        return _ended(ad, State.FAILED, f"ended by signal {ad.get('ExitSignal')}")
    good = ad.get("ExitCode") == 0
    return _ended(ad, State.SUCCEEDED if good else State.FAILED, f"exit code {ad.get('ExitCode')}")


def _given_up(ad: Ad) -> Status:
    """A job that its own rule took out: HTCondor held it, or would have begun it a second time."""
    code = ad.get("HoldReasonCode", ad.get("LastHoldReasonCode", 0))
    why = ad.get("HoldReason", ad.get("LastHoldReason", "it was begun, and came back to the queue without an end"))
    return _held({**ad, "HoldReasonCode": 0 if code in _PATIENT else code, "HoldReason": why})


def _ended(ad: Ad, state: State, message: str) -> Status:
    return Status(
        state,
        _NAMES.get(ad["JobStatus"], "ENDED"),
        node=_node(ad),
        start_time=_moment(ad.get("JobCurrentStartDate")),
        end_time=_moment(ad.get("EnteredCurrentStatus")),
        exit_code=ad.get("ExitCode"),
        message=message,
    )


def usage_of(ad: Ad) -> Usage:
    """What a past job has used."""
    memory = ad.get("ResidentSetSize_RAW", ad.get("ResidentSetSize", 0))
    return Usage(
        wall_s=float(ad.get("RemoteWallClockTime", 0)),
        cpu_user_s=float(ad.get("RemoteUserCpu", 0)),
        cpu_system_s=float(ad.get("RemoteSysCpu", 0)),
        max_memory_bytes=int(memory) * KIB,
        max_disk_bytes=int(ad.get("DiskUsage", 0)) * KIB,
    )


def pool_of(slots: Sequence[Ad], schedds: Sequence[Ad], name: str) -> ComputeResource:
    """The pool as one queue; the dynamic slots are parts of those that they were cut from."""
    whole = [slot for slot in slots if not slot.get("DynamicSlot")]
    free = [slot for slot in whole if slot.get("PartitionableSlot") or slot.get("State") == "Unclaimed"]
    cores = [int(slot.get("TotalSlotCpus", slot.get("Cpus", 0))) for slot in whole]
    drained = bool(whole) and all(slot.get("State") == "Drained" for slot in whole)
    memory = [int(slot["TotalSlotMemory"]) for slot in whole if "TotalSlotMemory" in slot]
    return ComputeResource(
        queue=name,
        cpu_milli=1000 * sum(cores) or None,
        max_cpu_milli=1000 * max(cores, default=0) or None,
        free_cpu_milli=1000 * sum(int(slot.get("Cpus", 0)) for slot in free),
        max_memory_bytes=max(memory) * MIB if memory else None,
        running_jobs=sum(int(ad.get("TotalRunningJobs", 0)) for ad in schedds),
        queued_jobs=sum(int(ad.get("TotalIdleJobs", 0)) for ad in schedds),
        message="the pool has no slots" if not whole else "all slots are drained" if drained else "",
        closed=drained,
    )


def _node(ad: Ad) -> str:
    slot = str(ad.get("RemoteHost", ad.get("LastRemoteHost", "")))
    return slot.partition("@")[2] or slot


def _moment(seconds: object) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) and seconds > 0 else None
