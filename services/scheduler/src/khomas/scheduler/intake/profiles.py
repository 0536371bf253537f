"""What jobs of a kind used, and what the next one of them gets. Rules on values alone.

Sizes are kept as numbers of jobs in buckets, each 2 % wider than the one before: quantiles are right to 2 %.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from khomas.api.scheduler.v1.job_spec_pb2 import Estimated, JobSpec
from khomas.api.scheduler.v1.placement_pb2 import RetryRule
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.lifecycle.bounds import span
from khomas.scheduler.records import Attempt

QUANTILE, LEAST_JOBS = 0.99, 30
_MARGIN, _WIDTH = 1.1, 1.02
_MIB = 1 << 20
_GROWING = (Reason.REASON_LIMIT_MEMORY, Reason.REASON_LIMIT_WALL, Reason.REASON_LIMIT_CPU)
# Fields of Resources, in bytes and in seconds.
_BYTES, _SECONDS = ("memory_bytes", "disk_bytes"), ("wall_time", "cpu_time")


@dataclass(frozen=True, slots=True)
class Used:
    """So many jobs of a kind at a backend used about so much: a row of the table `usage_profile`."""

    profile: str
    backend: str
    # Field of Resources.
    what: str
    bucket: int
    number: int


def kind_of_jobs(spec: JobSpec) -> str:
    """Which jobs use about the same; empty when it is not said."""
    tags = spec.tags
    if "application" not in tags:
        return spec.display_name
    name = "/".join(tags[key] for key in ("application", "version") if tags.get(key))
    return f"{name} {tags['cell']}" if tags.get("cell") else name


def uses(attempts: Iterable[Attempt], kinds: Mapping[str, str]) -> list[Used]:
    """What attempts that succeeded used; `kinds` by job."""
    numbers: Counter[tuple[str, str, str, int]] = Counter()
    for attempt in attempts:
        kind = kinds.get(attempt.job, "")
        if not kind or attempt.state != JobState.JOB_STATE_SUCCEEDED:
            continue
        for what, value in _used(attempt).items():
            if value > 0:
                numbers[kind, attempt.backend, what, bucket_of(value)] += 1
    return [Used(*key, number) for key, number in sorted(numbers.items())]


def _used(attempt: Attempt) -> dict[str, float]:
    usage = attempt.usage
    return {
        "memory_bytes": usage.get("max_memory_bytes", 0),
        "disk_bytes": usage.get("max_disk_bytes", 0),
        "wall_time": usage.get("wall_s", 0.0),
        "cpu_time": usage.get("cpu_user_s", 0.0) + usage.get("cpu_system_s", 0.0),
    }


def bucket_of(value: float) -> int:
    """The bucket whose upper end is the first that is not below the value."""
    return math.ceil(round(math.log(value, _WIDTH), 9))


def quantile(numbers: Mapping[int, int], part: float) -> float:
    """The size that this part of the jobs does not go beyond."""
    wanted, so_far = part * sum(numbers.values()), 0
    for bucket, number in sorted(numbers.items()):
        so_far += number
        if so_far >= wanted:
            return float(_WIDTH**bucket)
    return 0.0


def filled(spec: JobSpec, history: Sequence[Used], backend: str) -> JobSpec:
    """The spec with what history says: of this backend where it has enough, else of all."""
    made = JobSpec()
    made.CopyFrom(spec)
    del made.resources.estimated[:]
    for what in (*_BYTES, *_SECONDS):
        mine = _numbers(one for one in history if one.what == what and one.backend == backend)
        enough = sum(mine.values()) >= LEAST_JOBS
        numbers = mine if enough else _numbers(one for one in history if one.what == what)
        if sum(numbers.values()) >= LEAST_JOBS:
            _fill(made, what, numbers, f"{kind_of_jobs(spec)} at {backend}" if enough else kind_of_jobs(spec))
    made.retry.rules.add(reasons=_GROWING, action=RetryRule.ACTION_GROW_AND_RETRY)
    return made


def _numbers(some: Iterable[Used]) -> Counter[int]:
    numbers: Counter[int] = Counter()
    for one in some:
        numbers[one.bucket] += one.number
    return numbers


def _fill(spec: JobSpec, what: str, numbers: Mapping[int, int], profile: str) -> None:
    resources = spec.resources
    value = quantile(numbers, QUANTILE) * _MARGIN
    if what in _BYTES:
        given = float(getattr(resources, what))
        value = math.ceil(value / _MIB) * _MIB
        setattr(resources, what, int(value))
    else:
        given = span(getattr(resources, what)).total_seconds()
        value = math.ceil(value)
        getattr(resources, what).FromSeconds(int(value))
    resources.estimated.append(
        Estimated(
            field=what,
            given=given,
            value=value,
            sample_size=sum(numbers.values()),
            quantile=QUANTILE,
            profile=profile,
        )
    )
