"""Judges one job by its Job, its pod and the record in it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from khomas.scheduler.backends.interface import Observation, Seen, State
from khomas.scheduler.backends.kubernetes import answers
from khomas.scheduler.backends.kubernetes.volume import TOKEN
from khomas.scheduler.backends.spool.dialect import Status
from khomas.scheduler.backends.spool.verdicts import Look, observation

# When a job was cancelled, and its grace in seconds.
CANCELLED = "khomas.io/cancelled"
_UNASKED = "the cluster ended the pod"
_GONE = "its pod is gone and left no record: evicted, preempted, or lost with its node"
Object = Mapping[str, Any]


def look(native_id: str, token: str, job: Object, pod: Object | None, record: Object | None) -> Observation:
    """The record first; without one what the cluster tells."""
    status, cancelled = answers.status(job, pod), _order(job) is not None
    if record is not None and record.get("state") == "CANCELLED" and not cancelled:
        # SIGTERM of the cluster, not ours.
        why = status.reason or "INFRA_ENVIRONMENT"
        status, record = replace(status, state=State.FAILED, reason=why, message=status.message or _UNASKED), None
    elif cancelled and record is None and pod is not None and answers.alive(pod) and status.state.final:
        status = Status(State.RUNNING, "Terminating", node=status.node)
    elif cancelled and pod is None and job.get("spec", {}).get("suspend"):
        # Nobody looks at the time of a Job that is held back; when it is let go, its time is over.
        status = Status(State.CANCELLED, status.native_state)
    elif record is None and pod is None and status.state is State.FAILED and not status.reason:
        status = replace(status, reason="INFRA_ENVIRONMENT", message=f"{_GONE}: {status.message}")
    one = Look(native_id, token, record, status, cancelled=cancelled and status.state.final, judged=True)
    return observation(one, settled=True)


def overdue(job: Object, pod: Object | None, more_seconds: float) -> bool:
    """Whether the grace of a cancelled job is over and its pod still there."""
    order = _order(job)
    if order is None or pod is None or not answers.alive(pod) or "deletionTimestamp" not in pod["metadata"]:
        return False
    moment, grace = order
    return time.time() > moment + grace + more_seconds


def _order(job: Object) -> tuple[float, float] | None:
    text = job["metadata"].get("annotations", {}).get(CANCELLED)
    if text is None:
        return None
    moment, grace = json.loads(text)
    return moment, grace


def ends(seen: Observation) -> bool:
    """Whether nothing of it goes on."""
    return seen.state.final or seen.seen is Seen.ABSENT


def pods_by_token(pods: Sequence[Object]) -> dict[str, Object]:
    """A pod a job: when the cluster made a second one, that with a record."""
    found: dict[str, Object] = {}
    for pod in pods:
        token = pod["metadata"]["labels"].get(TOKEN, "")
        if token not in found or answers.record(found[token], token) is None:
            found[token] = pod
    return found
