"""Rules as rows, as messages and as events."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from khomas.api.storage.v1 import rule_pb2 as pb
from khomas.kit.events import NewEvent
from khomas.kit.ids import new_uid

PREFIX = "replicationRules/"
State = pb.ReplicationRule.State
_PLAIN = (
    "dataset",
    "directory",
    "filter",
    "expression",
    "copies",
    "priority",
    "grouping",
    "share",
    "origin",
    "suspended",
    "description",
    "state",
    "message",
    "owner",
    "policy",
)
COUNTS = ("files", "bytes", "ok_copies", "replicating_copies", "stuck_copies", "missing_bytes")


def new_row(given: pb.ReplicationRule, owner: str, policy: str = "") -> dict[str, Any]:
    """Return a new rule as a row of the table; it is due at once."""
    now = datetime.now(UTC)
    return {
        **{name: getattr(given, name) for name in _PLAIN},
        **dict.fromkeys(COUNTS, 0),
        "uid": new_uid(),
        "grouping": given.grouping or pb.ReplicationRule.GROUPING_NONE,
        "expire_time": expire_time(given, now),
        "owner": owner,
        "policy": policy,
        "state": State.STATE_SUSPENDED if given.suspended else State.STATE_REPLICATING,
        "message": "",
        "create_time": now,
        "update_time": now,
        "state_time": now,
        "version": 1,
        "places": [],
        "listing": 0,
        "list_due": True,
        "due_time": now,
        "touched": 0,
    }


def expire_time(given: pb.ReplicationRule, now: datetime) -> datetime | None:
    """Return the end of a lifetime that begins now."""
    if not given.HasField("lifetime"):
        return None
    return now + timedelta(seconds=given.lifetime.seconds, microseconds=given.lifetime.nanos // 1000)


def rule_proto(row: Mapping[str, Any]) -> pb.ReplicationRule:
    """Return a rule as callers see it."""
    message = pb.ReplicationRule(
        name=PREFIX + row["uid"], etag=str(row["version"]), **{name: row[name] for name in _PLAIN}
    )
    message.counts.CopyFrom(pb.RuleCounts(**{name: row[name] for name in COUNTS}))
    for name in ("create_time", "update_time", "state_time", "expire_time"):
        if row[name] is not None:
            getattr(message, name).FromDatetime(row[name])
    return message


def rule_event(row: Mapping[str, Any], verb: str = "changed") -> NewEvent:
    """Tell how a rule is now."""
    message = rule_proto(row)
    return NewEvent(f"storage.rule.{verb}", message.name, row["uid"], row["origin"], message)
