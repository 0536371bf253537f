"""The default: success and near data against the time that a job would wait."""

from collections.abc import Sequence
from datetime import timedelta

from khomas.scheduler.ranking.interface import Facts, Rank, span

# Beta prior of the success rate: a place that nothing is known of counts as one with 4.5 of 5 jobs done.
_PRIOR_GOOD, _PRIOR_BAD = 4.5, 0.5


def success_rate(successes: int, sample: int) -> float:
    """Share of jobs that a place brings to their end, smoothed: few jobs do not say much."""
    return (successes + _PRIOR_GOOD) / (sample + _PRIOR_GOOD + _PRIOR_BAD)


def weighted(places: Sequence[Facts], length: timedelta) -> list[Rank]:
    """Priority x success rate x bonus for near data / (1 + expected wait / job length)."""
    return [_rank(place, length) for place in places]


def _rank(place: Facts, length: timedelta) -> Rank:
    if not place.fits:
        return Rank(0.0, "the job does not fit its limits")
    if not place.in_use:
        return Rank(0.0, "it is not in use")
    rate = success_rate(place.successes, place.sample)
    value = place.priority * rate
    said = f"priority {place.priority:g} x success rate {rate:.3f} ({_jobs(place)})"
    if place.local is not None:
        value *= 1 + place.local
        said += f" x {1 + place.local:.2f} as {place.local:.0%} of its input is there"
    if place.expected_wait is None:
        return Rank(value, f"{said}; how long jobs wait there is not known")
    value /= 1 + place.expected_wait / length
    return Rank(value, f"{said} / (1 + {span(place.expected_wait)} of expected wait / {span(length)} of run time)")


def _jobs(place: Facts) -> str:
    return f"{place.successes} of {place.sample} recent jobs" if place.sample else "no recent jobs"
