"""From the runner's journal and the wrapper's exit record to observations."""

from collections.abc import Mapping
from typing import Any

from khomas.scheduler.backends import received
from khomas.scheduler.backends.interface import Observation, Seen, State, Usage


def observed(event: Mapping[str, Any]) -> Observation:
    """Return what a line of the journal tells."""
    token = event["token"]
    if event["event"] == "ended":
        return final(token, event["record"])
    if event["event"] == "started":
        return running(token, event)
    return Observation(token, token, Seen.ABSENT)


def running(token: str, started: Mapping[str, Any]) -> Observation:
    """Return the observation of a job whose wrapper runs: since when and on which host."""
    start, host = received.moment(started.get("time")), str(started.get("host", ""))
    return Observation(token, token, Seen.PRESENT, State.RUNNING, "started", node=host, start_time=start)


def final(token: str, told: Any) -> Observation:
    """Return the observation of a job that left an exit record."""
    record = received.record(told)
    return Observation(
        token,
        token,
        Seen.PRESENT,
        State[record["state"]],
        record["state"],
        node=record.get("host", ""),
        start_time=received.moment(record.get("start_time")),
        record=record,
    )


def usage_of(record: Mapping[str, Any]) -> Usage:
    """Return the resources that an exit record tells."""
    return Usage(**received.record(record).get("usage", {}))


def usage_so_far(started: Any, beat: Any) -> Usage | None:
    """Return what a running job has used, by the wrapper's `heartbeat`; None before the first."""
    if not isinstance(started, Mapping) or not isinstance(beat, Mapping):
        return None
    first, last = received.moment(started.get("time")), received.moment(beat.get("time"))
    if first is None or last is None:
        return None
    used = Usage(
        wall_s=(last - first).total_seconds(),
        cpu_user_s=beat.get("cpu_s", 0.0),
        max_memory_bytes=beat.get("memory_bytes", 0),
        max_disk_bytes=beat.get("disk_bytes", 0),
    )
    return received.usage(used)
