"""What LSF answers: pure functions from its text to records."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from khomas.scheduler.backends.interface import ComputeResource, State, Usage

FIELDS = (
    "jobid jobindex job_name stat queue exec_host start_time "
    "exit_code exit_reason pend_reason cpu_used run_time max_mem"
)
_STATES = {
    "PEND": State.QUEUED,
    "PROV": State.QUEUED,
    "WAIT": State.QUEUED,
    "PSUSP": State.QUEUED,
    "RUN": State.RUNNING,
    "USUSP": State.SUSPENDED,
    "SSUSP": State.SUSPENDED,
    "DONE": State.SUCCEEDED,
    "EXIT": State.FAILED,
}
_SUBMITTED = re.compile(r"Job <(\d+)> is submitted to")
_SIZES = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20, "gbytes": 1 << 30, "tbytes": 1 << 40}
_SIZES |= {unit[0].upper(): factor for unit, factor in _SIZES.items()}
_MOMENT = re.compile(r"(\w{3}) +(\d+) (\d+):(\d+)(?::(\d+))?(?: (\d{4}))?")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@dataclass(frozen=True, slots=True)
class Row:
    """One job or one element of an array."""

    native_id: str
    name: str
    # STAT of bjobs.
    code: str
    queue: str
    node: str
    start_time: datetime | None
    exit_code: int | None
    # Why it waits or how it ended.
    message: str
    usage: Usage | None

    @property
    def state(self) -> State:
        """The state as far as LSF can tell."""
        if self.code == "EXIT" and self.message.startswith(("TERM_OWNER", "TERM_ADMIN", "TERM_FORCE")):
            return State.CANCELLED
        return _STATES.get(self.code, State.UNKNOWN)


def parse_submitted(text: str) -> str:
    """Read the number that bsub gave; empty when there is none."""
    match = _SUBMITTED.search(text)
    return match[1] if match else ""


def parse_jobs(text: str, now: datetime) -> list[Row]:
    """Read the answer of `bjobs -a -json -o FIELDS`; `now` helps where the year is not shown."""
    return [_row(record, now) for record in _records(text) if "ERROR" not in record]


def _records(text: str) -> list[dict[str, Any]]:
    start = text.find("{")
    found: list[dict[str, Any]] = json.loads(text[start:]).get("RECORDS", []) if start >= 0 else []
    return found


def _row(record: Mapping[str, str], now: datetime) -> Row:
    number, index = record["JOBID"], record.get("JOBINDEX", "0")
    code = record.get("EXIT_CODE", "")
    started = moment(record.get("START_TIME", ""), now)
    usage = Usage(
        wall_s=_number(record.get("RUN_TIME", "")),
        cpu_user_s=_number(record.get("CPU_USED", "")),
        max_memory_bytes=size(record.get("MAX_MEM", "")),
    )
    return Row(
        native_id=f"{number}[{index}]" if index not in ("", "0", "-") and "[" not in number else number,
        name=record.get("JOB_NAME", "").partition("[")[0],
        code=record.get("STAT", ""),
        queue=record.get("QUEUE", ""),
        node=record.get("EXEC_HOST", "").partition(":")[0].rpartition("*")[2],
        start_time=started,
        exit_code=int(code) if code.isdigit() else None,
        message=record.get("EXIT_REASON") or record.get("PEND_REASON") or "",
        usage=usage if started else None,
    )


def _number(text: str) -> float:
    """Read "34 second(s)"."""
    match = re.match(r"[\d.]+", text)
    return float(match[0]) if match else 0.0


def size(text: str) -> int:
    """Read "9 Mbytes" or "1.5G"."""
    match = re.match(r"([\d.]+) ?(\w*)", text)
    if match is None:
        return 0
    return int(float(match[1]) * _SIZES.get(match[2].lower(), _SIZES.get(match[2][:1].upper(), 1)))


def moment(text: str, now: datetime) -> datetime | None:
    """Read "Apr 12 18:10:55 2026", also without seconds and year, of the time zone of the command."""
    match = _MOMENT.match(text)
    if match is None or match[1] not in _MONTHS:
        return None
    month, day, hour, minute = _MONTHS.index(match[1]) + 1, int(match[2]), int(match[3]), int(match[4])
    year = int(match[6]) if match[6] else now.year
    found = datetime(year, month, day, hour, minute, int(match[5] or 0), tzinfo=UTC)
    return found.replace(year=year - 1) if not match[6] and (found - now).days > 1 else found


def parse_queues(queues: str, hosts: str) -> list[ComputeResource]:
    """Read the answers of `bqueues -json -o …` and `bhosts -json -o …`."""
    usable = [host for host in _records(hosts) if host["STATUS"].startswith(("ok", "closed_Full", "closed_Excl"))]
    total, used = (sum(_count(host[key]) for host in usable) for key in ("MAX", "NJOBS"))
    return [
        ComputeResource(
            queue=queue["QUEUE_NAME"],
            cpu_milli=total * 1000 or None,
            free_cpu_milli=max(0, total - used) * 1000,
            running_jobs=_count(queue["RUN"]),
            queued_jobs=_count(queue["PEND"]),
            message="" if queue["STATUS"] == "Open:Active" else queue["STATUS"],
            closed=queue["STATUS"] != "Open:Active",
        )
        for queue in _records(queues)
    ]


def parse_defaults(text: str) -> list[str]:
    """Read the first line of `bparams`: "Default Queues:  normal interactive"."""
    match = re.search(r"(?m)^Default Queues:(.*)$", text)
    return match[1].split() if match else []


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0
