"""Priority by response time alone, as the production manager of H.E.S.S. has it: nothing from a day on."""

from collections.abc import Sequence
from datetime import timedelta

from khomas.scheduler.ranking.interface import Facts, Rank, span

_DAY = timedelta(days=1)


def response_time_linear(places: Sequence[Facts], length: timedelta) -> list[Rank]:
    """1 - response time / 1 day, not less than 0, as a share of the sum over the places in use.

    A place whose response time is not known counts as the mean of the others.
    """
    used = [place for place in places if place.fits and place.in_use]
    known = [_weight(place.expected_wait) for place in used if place.expected_wait is not None]
    mean = sum(known) / len(known) if known else 1.0
    total = sum(known) + mean * (len(used) - len(known))
    return [_rank(place, mean, total) for place in places]


def _weight(wait: timedelta) -> float:
    return max(0.0, 1 - wait / _DAY)


def _rank(place: Facts, mean: float, total: float) -> Rank:
    if not (place.fits and place.in_use):
        return Rank(0.0, "the job does not fit its limits" if place.in_use else "it is not in use")
    if place.expected_wait is None:
        return Rank(mean / total if total else 0.0, "its response time is not known: as the mean of the others")
    weight = _weight(place.expected_wait)
    said = f"response time {span(place.expected_wait)}: {weight:.6f} of {total:.6f} for all in use"
    return Rank(weight / total if total else 0.0, said)
