"""What Grid Engine answers: pure functions from its text to records."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.etree import ElementTree

from khomas.scheduler.backends.interface import ComputeResource, State, Usage

_FIELDS = 45  # of sge_accounting(5)
# An instance in one of these states gets no jobs until somebody, or the calendar, ends it.
_SHUT = set("cCdDEosS")
_QUEUE_STATES = {
    "a": "load alarm",
    "A": "load alarm, jobs get suspended",
    "c": "wrongly configured",
    "C": "suspended by its calendar",
    "d": "disabled",
    "D": "disabled by its calendar",
    "E": "error",
    "o": "about to be removed",
    "s": "suspended",
    "S": "suspended by another queue",
    "u": "host does not answer",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `qstat -xml -g d`."""

    native_id: str
    name: str
    # Letters of qstat(1), "hqw" for example.
    code: str
    queue: str
    node: str
    start_time: datetime | None


@dataclass(frozen=True, slots=True)
class Account:
    """One record of sge_accounting(5)."""

    native_id: str
    name: str
    queue: str
    node: str
    start_time: datetime | None
    # 0 = it ran to an end of its own, 100 = ended by a signal or by qdel.
    failed: int
    # Above 128 = ended by a signal.
    exit_status: int
    usage: Usage


def parse_jobs(text: str) -> list[Row]:
    """Read the answer of `qstat -xml -g d`, whose times are of the time zone of the command."""
    root = ElementTree.fromstring(text)  # noqa: S314  the site's own command wrote it
    return [_row(entry) for entry in root.iter("job_list")]


def _row(entry: ElementTree.Element) -> Row:
    number, task = _text(entry, "JB_job_number"), _text(entry, "tasks")
    queue, _, node = _text(entry, "queue_name").partition("@")
    started = _text(entry, "JAT_start_time")
    return Row(
        f"{number}.{task}" if task else number,
        _text(entry, "JB_name"),
        _text(entry, "state"),
        queue,
        node,
        datetime.fromisoformat(started).replace(tzinfo=UTC) if started else None,
    )


def _text(entry: ElementTree.Element, name: str) -> str:
    return (entry.findtext(name) or "").strip()


def state_of(code: str) -> State:
    """Translate the letters of qstat(1). A job in the error state (E) never starts by itself."""
    if "E" in code:
        return State.FAILED
    if "q" in code or "w" in code:
        return State.QUEUED
    if set(code) & set("sSTN"):
        return State.SUSPENDED
    return State.RUNNING if set(code) & set("rtR") else State.UNKNOWN


def parse_accounting(lines: Iterable[str]) -> Iterator[Account]:
    """Read lines of the accounting file; those that are no whole record are left out."""
    for line in lines:
        parts = line.rstrip("\n").split(":")
        if line.startswith("#") or len(parts) < _FIELDS:
            continue
        try:
            yield _account(parts)
        except ValueError:
            continue


def _account(parts: list[str]) -> Account:
    number, task, start, end = parts[5], parts[35], int(parts[9]), int(parts[10])
    usage = Usage(
        wall_s=float(end - start) if start else 0.0,
        cpu_user_s=float(parts[14]),
        cpu_system_s=float(parts[15]),
        max_memory_bytes=int(float(parts[16])) * 1024,
    )
    return Account(
        number if task == "0" else f"{number}.{task}",
        parts[4],
        parts[0],
        parts[1],
        datetime.fromtimestamp(start, UTC) if start else None,
        int(parts[11]),
        int(parts[12]),
        usage,
    )


def parse_queues(summary: str, hosts: str) -> list[ComputeResource]:
    """Read the answers of `qstat -g c -xml` and `qhost -q -xml`."""
    letters = _letters(hosts)
    root = ElementTree.fromstring(summary)  # noqa: S314  the site's own command wrote it
    return [
        ComputeResource(
            queue=_text(entry, "name"),
            cpu_milli=int(_text(entry, "total") or 0) * 1000 or None,
            free_cpu_milli=int(_text(entry, "available") or 0) * 1000,
            message="; ".join(_troubles(letters.get(_text(entry, "name"), {}))),
            closed=all(_SHUT & set(told) for told in letters.get(_text(entry, "name"), {"": ""}).values()),
        )
        for entry in root.iter("cluster_queue_summary")
    ]


def _letters(hosts: str) -> dict[str, dict[str, str]]:
    """States of the instances of each queue, by host."""
    found: dict[str, dict[str, str]] = {}
    for host in ElementTree.fromstring(hosts).iter("host"):  # noqa: S314  the site's own command wrote it
        for queue in host.iter("queue"):
            told = queue.findtext("queuevalue[@name='state_string']") or ""
            found.setdefault(queue.get("name", ""), {})[host.get("name", "")] = told.strip()
    return found


def _troubles(letters: Mapping[str, str]) -> list[str]:
    """What is wrong with the instances of a queue."""
    words = {host: [_QUEUE_STATES.get(letter, letter) for letter in told] for host, told in letters.items()}
    return [f"{host}: {', '.join(some)}" for host, some in words.items() if some]
