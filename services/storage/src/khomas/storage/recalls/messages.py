"""Recalls as callers see them."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from khomas.api.storage.v1 import recall_pb2 as pb
from khomas.kit.events import NewEvent

PREFIX: Final = "recalls/"
State = pb.Recall.State
ACTIVE: Final = (State.STATE_WAITING, State.STATE_REQUESTED, State.STATE_ONLINE)


def recall_proto(row: Mapping[str, Any]) -> pb.Recall:
    """Return a recall."""
    message = pb.Recall(
        name=PREFIX + row["uid"],
        file=row["file"],
        storage_element=row["storage_element"],
        state=row["state"],
        reason=row["reason"],
        message=row["message"],
        size_bytes=row["size_bytes"],
        request=row["native_id"],
        origin=row["origin"],
        owner=row["owner"],
    )
    if row["state"] == State.STATE_REQUESTED:
        message.queue_position = row["queue_position"]
        message.position_estimated = row["position_estimated"]
    message.pin_lifetime.FromTimedelta(timedelta(seconds=row["pin_seconds"]))
    for field in ("pin_time", "create_time", "state_time", "end_time"):
        if row[field] is not None:
            getattr(message, field).FromDatetime(row[field])
    return message


def recall_event(row: Mapping[str, Any]) -> NewEvent:
    """Tell how a recall is now."""
    message = recall_proto(row)
    return NewEvent("storage.recall.changed", message.name, row["uid"], row["origin"], message)


def word(reason: int) -> str:
    """Return a reason as people read it."""
    return pb.RecallReason.Name(pb.RecallReason.ValueType(reason)).removeprefix("RECALL_REASON_") if reason else ""
