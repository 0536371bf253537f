"""What PBS Professional and Torque answer: pure functions from their text to records."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

from khomas.scheduler.backends.interface import ComputeResource, State, Usage

# Job states of both; B is an array of which some elements have started.
_STATES = {
    "B": State.RUNNING,
    "E": State.RUNNING,
    "H": State.QUEUED,
    "M": State.QUEUED,
    "Q": State.QUEUED,
    "R": State.RUNNING,
    "S": State.SUSPENDED,
    "T": State.QUEUED,
    "U": State.SUSPENDED,
    "W": State.QUEUED,
}
# Finished (F), an array element that has ended (X), completed in Torque (C).
_ENDED = frozenset("FXC")
# Substate of a job that was ended by qdel.
_DELETED = 91
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"(\d+)([kmgtp]?)([bw]?)$")
_BARE_NUMBER = re.compile(r'":(-?0\d[\w.]*|[\d.]*[A-Za-z_:/][^",\n]*)(,?)$', re.MULTILINE)
_COUNT = re.compile(r"(\w+):(\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    """One job or one element of an array."""

    native_id: str
    name: str
    # One letter of qstat.
    code: str
    queue: str
    node: str
    start_time: datetime | None
    # None = it has not ended. Above 256 = ended by a signal, negative = it could not be started.
    exit_status: int | None
    deleted: bool
    usage: Usage | None

    @property
    def state(self) -> State:
        """The state as far as PBS can tell."""
        if self.code not in _ENDED:
            return _STATES.get(self.code, State.UNKNOWN)
        if self.exit_status is None or self.deleted:
            return State.CANCELLED
        return State.SUCCEEDED if self.exit_status == 0 else State.FAILED


def parse_json(text: str) -> list[Row]:
    """Read the answer of `qstat -x -t -f -F json`; arrays themselves are left out where they were unfolded."""
    jobs: Mapping[str, Mapping[str, Any]] = _document(text).get("Jobs", {})
    return [_row(name, entry) for name, entry in jobs.items() if entry.get("array") != "True"]


def _document(text: str) -> dict[str, Any]:
    """Read JSON; some versions leave values such as 007 and 12:30 without quotes."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        found: dict[str, Any] = json.loads(text[start:])
    except ValueError:
        found = json.loads(_BARE_NUMBER.sub(lambda match: f'":"{match[1]}"{match[2]}', text[start:]))
    return found


def parse_xml(text: str) -> list[Row]:
    """Read the answer of Torque's `qstat -t -x`."""
    start = text.find("<")
    if start < 0:
        return []
    root = ElementTree.fromstring(text[start:])  # noqa: S314  the site's own command wrote it
    entries = [(entry.findtext("Job_Id") or "", _flat(entry)) for entry in root.iter("Job")]
    return [_row(name, entry) for name, entry in entries if "[]" not in name]


def _flat(entry: ElementTree.Element) -> dict[str, Any]:
    return {child.tag: _flat(child) if len(child) else (child.text or "") for child in entry}


def _row(name: str, entry: Mapping[str, Any]) -> Row:
    status = entry.get("Exit_status", entry.get("exit_status"))
    started = entry.get("stime", entry.get("start_time"))
    return Row(
        native_id=name,
        name=str(entry.get("Job_Name", "")),
        code=str(entry.get("job_state", "")),
        queue=str(entry.get("queue", "")),
        node=re.split(r"[/+]", str(entry.get("exec_host", "")))[0],
        start_time=moment(str(started)) if started else None,
        exit_status=None if status is None else int(status),
        deleted=str(entry.get("substate", "")) == str(_DELETED),
        usage=_usage(entry.get("resources_used")),
    )


def _usage(used: Mapping[str, Any] | None) -> Usage | None:
    if not used:
        return None
    return Usage(
        wall_s=seconds(str(used.get("walltime", "0"))),
        cpu_user_s=seconds(str(used.get("cput", "0"))),
        max_memory_bytes=size(str(used.get("mem", "0"))),
    )


def moment(text: str) -> datetime | None:
    """Read a time of the time zone of the command: seconds since 1970 or ctime(3)."""
    if text.isdigit():
        return datetime.fromtimestamp(int(text), UTC)
    try:
        return datetime.strptime(text, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    except ValueError:
        return None


def seconds(text: str) -> float:
    """Read 01:02:03 or 3723."""
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part or 0)
    return total


def size(text: str) -> int:
    """Read 100mb; a word (w) has eight bytes."""
    match = _SIZE.match(text.strip().lower())
    if match is None:
        return 0
    return int(match[1]) * _SIZES[match[2]] * (8 if match[3] == "w" else 1)


def parse_queues(queues: str, nodes: str) -> list[ComputeResource]:
    """Read the answers of `qstat -Q -f -F json` and `pbsnodes -a -F json`."""
    usable = [node for node in _document(nodes).get("nodes", {}).values() if _in_service(str(node.get("state", "")))]
    total = sum(int(node.get("resources_available", {}).get("ncpus", 0)) for node in usable)
    used = sum(int(node.get("resources_assigned", {}).get("ncpus", 0)) for node in usable)
    memory = max((size(str(node.get("resources_available", {}).get("mem", "0"))) for node in usable), default=0)
    return list(_queues(_document(queues).get("Queue", {}), total, used, memory))


def parse_defaults(queues: str, server: str, wanted: str = "") -> list[str]:
    """Names of the queues where jobs end up that name none; a routing queue chooses among its destinations."""
    servers = _document(server).get("Server", {}).values()
    first = wanted or next((str(one.get("default_queue", "")) for one in servers), "")
    destinations = _document(queues).get("Queue", {}).get(first, {}).get("route_destinations", "")
    return [first, *(name.partition("@")[0] for name in str(destinations).split(",") if name)]


def _in_service(state: str) -> bool:
    return not {"down", "offline", "unknown", "stale"} & set(re.split(r"[,\s-]+", state))


def _queues(queues: Mapping[str, Mapping[str, Any]], total: int, used: int, memory: int) -> Iterator[ComputeResource]:
    for name, queue in queues.items():
        if queue.get("queue_type") not in ("Execution", "E"):
            continue
        counts = {key: int(number) for key, number in _COUNT.findall(str(queue.get("state_count", "")))}
        wall = queue.get("resources_max", {}).get("walltime")
        wants = {"enabled": "takes no jobs", "started": "starts no jobs"}
        troubles = [why for key, why in wants.items() if str(queue.get(key, "True")) != "True"]
        yield ComputeResource(
            queue=name,
            cpu_milli=total * 1000 or None,
            free_cpu_milli=max(0, total - used) * 1000,
            max_memory_bytes=memory or None,
            max_wall_time=timedelta(seconds=seconds(str(wall))) if wall else None,
            running_jobs=counts.get("Running", 0),
            queued_jobs=counts.get("Queued", 0) + counts.get("Held", 0) + counts.get("Waiting", 0),
            message="; ".join(troubles),
            closed=bool(troubles),
        )
