"""What comes from nodes and batch systems, made into what it is to be: one job may not spoil a look at all of them.

Programs of users write some of it, and run beside what writes the rest.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.scheduler.backends.interface import Observation, State, SubmitOutcome, Usage
from khomas.scheduler.storable import storable

_ENDS = ("SUCCEEDED", "FAILED", "CANCELLED")
_SENTENCE, _WORDS, _NAME = 4096, 1024, 256
_INT32, _INT64 = 1 << 31, 1 << 63
# 300 years of CPU time, and more bytes than there are: sums of them can be kept too.
_SECONDS, _COUNT = 1e10, 1 << 50
_USAGE: Mapping[str, float] = {
    "wall_s": _SECONDS,
    "cpu_user_s": _SECONDS,
    "cpu_system_s": _SECONDS,
    "max_memory_bytes": _COUNT,
    "max_disk_bytes": _COUNT,
    "read_bytes": _COUNT,
    "write_bytes": _COUNT,
    "events": _COUNT,
}
_SUMS = ("adler32", "sha256", "content_digest")


def record(told: Any) -> dict[str, Any]:
    """An exit record in which all that we use is as it is to be; one that makes no sense is a failure of its node."""
    try:
        return _record(told)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        message = storable(f"its exit record makes no sense: {type(error).__name__}: {error}", _SENTENCE)
        return {"state": "FAILED", "reason": Reason.REASON_INFRA_ENVIRONMENT, "message": message, "outputs": []}


def observation(seen: Observation) -> Observation:
    """One look at one job."""
    seen = replace(
        seen,
        native_state=storable(seen.native_state, _WORDS),
        node=storable(seen.node, _NAME),
        queue=storable(seen.queue, _NAME),
        start_time=_aware(seen.start_time),
        usage=usage(seen.usage) if seen.usage is not None else None,
    )
    if seen.record is None or not seen.state.final:
        return replace(seen, record=None)
    read = record(seen.record)
    return replace(seen, record=read, state=State[read["state"]])


def outcome(told: SubmitOutcome) -> SubmitOutcome:
    """What became of a submission."""
    return replace(told, message=storable(told.message, _SENTENCE)) if told.message else told


def usage(used: Usage) -> Usage:
    """What a job has used."""
    try:
        return Usage(**_amounts(asdict(used)))
    except (OverflowError, TypeError, ValueError):
        return Usage()


def moment(text: Any) -> datetime | None:
    """A time as the wrapper writes it; None for anything else."""
    try:
        return _aware(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return None


def _record(told: Any) -> dict[str, Any]:
    state, reason = told["state"], _whole(told.get("reason") or 0, _INT32)
    message = storable(str(told.get("message") or ""), _SENTENCE)
    if state not in _ENDS:
        raise ValueError(f"the state {state!r}")
    outputs = [_output(one) for one in told.get("outputs") or ()]
    odd = [one["path"] for one in outputs if not _plain(one)]
    if odd and state == "SUCCEEDED":
        state, reason = "FAILED", int(Reason.REASON_APP_CHECK_FAILED)
        message = storable(f"the name of the output {odd[0]} is no UTF-8, or leads out: call it otherwise", _SENTENCE)
    return {
        **told,
        "state": state,
        "reason": reason,
        "message": message,
        "exit_code": _small(told.get("exit_code")),
        "signal": _small(told.get("signal")),
        "usage": _amounts(told.get("usage") or {}),
        "outputs": [one for one in outputs if _plain(one)],
        "application_status": storable(str(told.get("application_status") or ""), _NAME),
        "host": storable(str(told.get("host") or ""), _NAME),
        "start_time": told.get("start_time"),
    }


def _output(told: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "output": _whole(told["output"], _INT32),
        "path": str(told["path"]),
        "sandbox": bool(told["sandbox"]),
        "location": str(told["location"]),
        "size_bytes": _whole(told["size_bytes"], _INT64),
        **{name: storable(str(told[name]), _NAME) for name in _SUMS if told.get(name)},
    }
    if "index" in told:
        made["index"] = _whole(told["index"], _INT32)
    if told.get("header"):
        made["header"] = {storable(str(card)): _card(value) for card, value in told["header"].items()}
    return made


def _plain(made: Mapping[str, Any]) -> bool:
    """Whether a file can be fetched and named: its place is below the job's folder."""
    paths = [PurePosixPath(made[name]) for name in ("path", "location")]
    inside = all(path.parts and not path.is_absolute() and ".." not in path.parts for path in paths)
    return inside and all(storable(made[name]) == made[name] for name in ("path", "location"))


def _card(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else storable(str(value), _NAME)


def _amounts(used: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _amount(used[name], most) for name, most in _USAGE.items() if name in used}


def _amount(value: Any, most: float) -> Any:
    """At most so much; NaN and what is negative are nothing."""
    amount = most if value > most else value if value >= 0 else 0
    return float(amount) if most == _SECONDS else int(amount)


def _small(value: Any) -> int | None:
    return None if value is None else _whole(value, _INT32, -_INT32)


def _whole(value: Any, end: int, first: int = 0) -> int:
    if not isinstance(value, int) or not first <= value < end:
        raise ValueError(f"the number {value!r}")
    return int(value)


def _aware(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
