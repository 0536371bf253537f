"""From the runner's journal and the wrapper's exit record to observations."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from khomas.scheduler.backends.interface import Observation, Seen, State, Usage


def observed(event: Mapping[str, Any]) -> Observation:
    """Return what a line of the journal tells."""
    token = event["token"]
    if event["event"] == "ended":
        return final(token, event["record"])
    if event["event"] == "started":
        return running(token, event["time"], event["host"])
    return Observation(token, token, Seen.ABSENT)


def running(token: str, since: str, host: str) -> Observation:
    """Return the observation of a job whose wrapper runs."""
    start = datetime.fromisoformat(since)
    return Observation(token, token, Seen.PRESENT, State.RUNNING, "started", node=host, start_time=start)


def final(token: str, record: Mapping[str, Any]) -> Observation:
    """Return the observation of a job that left an exit record."""
    start = record.get("start_time")
    return Observation(
        token,
        token,
        Seen.PRESENT,
        State[record["state"]],
        record["state"],
        node=record["host"],
        start_time=datetime.fromisoformat(start) if start else None,
        record=record,
    )


def usage_of(record: Mapping[str, Any]) -> Usage:
    """Return the resources that an exit record tells."""
    return Usage(**{part.name: record["usage"][part.name] for part in fields(Usage)})


def usage_so_far(since: str, beat: Mapping[str, Any] | None) -> Usage | None:
    """Return what a running job has used, by the wrapper's `heartbeat`; None before the first."""
    if beat is None:
        return None
    wall = datetime.fromisoformat(beat["time"]) - datetime.fromisoformat(since)
    return Usage(
        wall_s=wall.total_seconds(),
        cpu_user_s=beat["cpu_s"],
        max_memory_bytes=beat["memory_bytes"],
        max_disk_bytes=beat["disk_bytes"],
    )
