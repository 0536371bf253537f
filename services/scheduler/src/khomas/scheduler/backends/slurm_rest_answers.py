"""What slurmrestd answers: v0.0.38 (numbers and words) and v0.0.40 (numbers that may be unset, lists of words)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from khomas.scheduler.backends.interface import ComputeResource, Usage
from khomas.scheduler.backends.slurm import ENDS, MIB, STATES
from khomas.scheduler.backends.spool.dialect import Status, UnreadableAnswerError

Document = Mapping[str, Any]
_JOB_KEYS = (
    "array_job_id",
    "array_task_id",
    "array_task_string",
    "end_time",
    "job_id",
    "job_state",
    "name",
    "nodes",
    "partition",
    "start_time",
    "state_reason",
)
# Codes of the controller itself, and of the reading of our request; between them are those of its communication.
_REFUSALS = (range(2000, 4000), range(7000, 10000))
_NOT_NOW = 11  # EAGAIN: the controller has as many jobs as it takes
# How far an array may go whose elements were not all told: Slurm shortens long lists.
MOST_ELEMENTS = 10_000


def errors(document: Document) -> list[tuple[int, str]]:
    """Codes and texts of what went wrong."""
    found = []
    for one in document.get("errors") or ():
        code = one.get("error_code") or one.get("error_number") or 0
        description, error = str(one.get("description") or ""), str(one.get("error") or "")
        said = [part for part in (description, error) if part and (part is description or part not in description)]
        found.append((int(code), ": ".join(said) or "unknown error"))
    return found


def refused(status: int, document: Document) -> bool:
    """Whether a submission that was answered so is certainly not in Slurm."""
    codes = [code for code, _ in errors(document)]
    if any(code == _NOT_NOW or any(code in some for some in _REFUSALS) for code in codes):
        return True
    return status in (400, 403)


def shrunk(document: Document, prefix: str) -> Document:
    """A list of jobs with what is read of it, and only those whose names begin so."""
    jobs = document.get("jobs") or ()
    kept = [{key: job.get(key) for key in _JOB_KEYS} for job in jobs if str(job.get("name", "")).startswith(prefix)]
    return {**document, "jobs": kept}


def number(value: Any) -> int | None:
    """A number; None when it is not set, or has no limit."""
    if isinstance(value, Mapping):
        return number(value.get("number")) if value.get("set") and not value.get("infinite") else None
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def word(value: Any) -> str:
    """A state; of a list the last word, since flags such as COMPLETING stand behind the state."""
    if isinstance(value, list | tuple):
        return str(value[-1]) if value else ""
    return str(value or "")


def statuses(document: Document) -> dict[str, Status]:
    """By native id; elements of an array that are told together are taken apart."""
    found: dict[str, Status] = {}
    folded = []
    for job in document["jobs"]:
        array, index = number(job["array_job_id"]), number(job["array_task_id"])
        status = _status(word(job["job_state"]), job)
        if array and index is not None:
            found[f"{array}_{index}"] = status
        elif array and job["array_task_string"]:
            folded.append((array, str(job["array_task_string"]), status))
        else:
            found[str(number(job["job_id"]))] = status
    for array, text, status in folded:
        for one in elements(text):
            found.setdefault(f"{array}_{one}", status)
    return found


def elements(text: str) -> Iterator[int]:
    """Read `0-3,7%2`; a list that was cut off ends with "..." and may go on to any element."""
    text, _, _ = text.partition("%")
    parts = text.split(",")
    cut = text.endswith("...")
    last = -1
    for part in parts[:-1] if cut else parts:
        low, _, high = part.partition("-")
        last = int(high.partition(":")[0] or low)
        yield from range(int(low), last + 1)
    if cut:
        yield from range(last + 1, MOST_ELEMENTS)


def accounts(document: Document) -> dict[str, tuple[Status, Usage]]:
    """By native id, from the database."""
    found = {}
    for job in document["jobs"]:
        array, index = number(job["array"]["job_id"]), number(job["array"]["task_id"])
        native = f"{array}_{index}" if array and index is not None else str(job["job_id"])
        told = {**job, "start_time": job["time"]["start"], "end_time": job["time"]["end"], "state_reason": ""}
        found[native] = _status(word(job["state"]["current"]), told), _usage(job)
    return found


def names(document: Document) -> dict[str, str]:
    """Native ids by the names of the jobs; of an array its own."""
    found = {}
    for job in document["jobs"]:
        array = job["array"]["job_id"] if "array" in job else job["array_job_id"]
        found[str(job["name"])] = str(number(array) or number(job["job_id"]))
    return found


def queues(partitions: Document, nodes: Document, jobs: Document) -> list[ComputeResource]:
    """A row a partition: the largest job that fits, and what is free."""
    return [_queue(one, nodes["nodes"], jobs["jobs"]) for one in partitions["partitions"]]


def _queue(partition: Document, nodes: Sequence[Document], jobs: Iterable[Document]) -> ComputeResource:
    name = str(partition["name"])
    mine = [node for node in nodes if name in node["partitions"]]
    usable = [node for node in mine if _usable(node)]
    words = [word(job["job_state"]) for job in jobs if job["partition"] == name]
    limit = number(_limit_minutes(partition))
    state = word(partition.get("state") or (partition.get("partition") or {}).get("state"))
    return ComputeResource(
        queue=name,
        cpu_milli=1000 * sum(node["cpus"] for node in usable) or None,
        max_cpu_milli=1000 * max((node["cpus"] for node in mine), default=0) or None,
        free_cpu_milli=1000 * sum(node["cpus"] - node["alloc_cpus"] for node in usable),
        max_memory_bytes=max((node["real_memory"] for node in mine), default=0) * MIB or None,
        max_wall_time=timedelta(minutes=limit) if limit is not None else None,
        running_jobs=words.count("RUNNING"),
        queued_jobs=words.count("PENDING"),
        message="" if state in ("", "UP") else f"the partition is {state}",
        closed=state not in ("", "UP"),
        # v0.0.40 does not tell it.
        is_default="default" in partition.get("flags", ()),
    )


def _limit_minutes(partition: Document) -> Any:
    """v0.0.40 has it among `maximums`."""
    return partition.get("max_time_limit", (partition.get("maximums") or {}).get("time"))


def _usable(node: Document) -> bool:
    told = node["state"] if isinstance(node["state"], list) else [node["state"], *node.get("state_flags", ())]
    return not {"DOWN", "DRAIN", "NOT_RESPONDING", "FUTURE", "UNKNOWN", "ERROR"} & {str(one).upper() for one in told}


def _status(state: str, job: Document) -> Status:
    if state not in STATES:
        raise UnreadableAnswerError(f"Slurm told the state {state!r}, which is not known")
    reason, message = ENDS.get(state, ("", ""))
    why = job["state_reason"]
    told = f"{state} ({why})" if state == "PENDING" and why not in ("", "None") else state
    node = "" if job["nodes"] in (None, "None assigned", "(null)") else str(job["nodes"])
    return Status(
        STATES[state],
        told,
        node,
        str(job["partition"] or ""),
        _time(job["start_time"]),
        _time(job["end_time"]),
        None,
        reason,
        message,
    )


def _time(value: Any) -> datetime | None:
    seconds = number(value)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _usage(job: Document) -> Usage:
    """Memory and disk are told of the step that is the batch script."""
    clock = job["time"]
    batch = next((step for step in job["steps"] if step["step"]["name"] == "batch"), None)
    told = batch["tres"] if batch is not None else {}
    times = batch["time"] if batch is not None else clock
    return Usage(
        wall_s=float(number(clock["elapsed"]) or 0),
        cpu_user_s=_seconds(times["user"]),
        cpu_system_s=_seconds(times["system"]),
        max_memory_bytes=_count(told.get("requested", {}).get("max", ()), "mem"),
        read_bytes=_count(told.get("requested", {}).get("total", ()), "fs"),
        write_bytes=_count(told.get("consumed", {}).get("total", ()), "fs"),
    )


def _seconds(value: Document) -> float:
    return float(value["seconds"]) + float(value["microseconds"]) / 1e6


def _count(entries: Iterable[Document], kind: str) -> int:
    return next((int(one["count"]) for one in entries if one["type"] == kind), 0)
