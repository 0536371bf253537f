"""How many more jobs a cell needs, counted in events."""

from dataclasses import dataclass
from math import ceil

# Below this many finished jobs the yield is taken as 1; it is never taken as less than the floor, so that a
# broken release cannot ask for an unbounded number of jobs.
YIELD_SAMPLE = 50
YIELD_FLOOR = 0.5


@dataclass(frozen=True, slots=True)
class Tally:
    """Events of one cell: asked for, produced, and planned in jobs that are not final; jobs by outcome."""

    requested: int
    produced: int
    in_flight: int
    succeeded: int = 0
    failed: int = 0


def observed_yield(tally: Tally, events_per_job: int) -> float:
    """Return produced events per finished job over planned events per job, between the floor and 1."""
    finished = tally.succeeded + tally.failed
    if finished < YIELD_SAMPLE:
        return 1.0
    return min(1.0, max(YIELD_FLOOR, tally.produced / (finished * events_per_job)))


def jobs_needed(tally: Tally, events_per_job: int) -> int:
    """Return how many more jobs are to be made now.

    n = ceil((requested - produced - p E in_flight_jobs) / (p E)) with the observed yield p and E events a job.
    Counting jobs instead ends short by all that failed or came back partial.
    """
    missing = tally.requested - tally.produced
    if missing <= 0:
        return 0
    share = observed_yield(tally, events_per_job)
    if share == 1.0:  # whole numbers, exact at any size
        return max(0, -((tally.in_flight - missing) // events_per_job))
    return max(0, ceil((missing - share * tally.in_flight) / (share * events_per_job)))
