"""What a ranking is: facts about places in, a number and a sentence for each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Facts:
    """A queue of a backend, as far as it matters for one kind of job."""

    name: str
    # As configured.
    priority: float = 1.0
    # Until a new job starts. None = not known.
    expected_wait: timedelta | None = None
    # Of `sample` recent jobs it brought so many to their end.
    successes: int = 0
    sample: int = 0
    # Share of the job's input bytes that lies at the site. None = the job has no input files, or it is not known.
    local: float | None = None
    # Whether the job fits its limits.
    fits: bool = True
    in_use: bool = True


@dataclass(frozen=True, slots=True)
class Rank:
    """How good a place is, and why."""

    value: float
    why: str


class Ranking(Protocol):
    """Entry point in the group `khomas.scheduler.rankings`. No I/O, no clock, no random inside."""

    def __call__(self, places: Sequence[Facts], length: timedelta) -> list[Rank]:
        """Rank all places for a job that takes so long, in their order; higher is better, 0 is the worst."""


def span(value: timedelta) -> str:
    """Say how long: "414 s", "22 min", "9.8 h"."""
    seconds = value.total_seconds()
    for least, size, unit in ((172_800, 86_400, "d"), (7200, 3600, "h"), (600, 60, "min")):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
