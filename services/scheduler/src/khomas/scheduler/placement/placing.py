"""Spreads the jobs of one turn over the backends; jobs of equal needs are ranked once."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.scheduler.placement.credentials import Lack
from khomas.scheduler.placement.matching import Match, Needs, Offer, match, standing_in_line
from khomas.scheduler.ranking import Ranking

_Line = tuple[tuple[bool, float, float, str], int]


@dataclass(slots=True)
class Group:
    """Jobs of equal needs: where they fit, and where credentials are missing for them."""

    match: Match
    lacks: Mapping[str, Lack]
    # Those that the jobs can go to when they have room.
    good: frozenset[str]
    # Backends by what they are sorted by, with the number of jobs that this is for.
    line: list[_Line] = field(default_factory=list)


class Placing:
    """Chooses backends one after the other, so that each choice counts for the next one."""

    def __init__(
        self, offers: Sequence[Offer], ranking: Ranking, lack: Callable[[str, timedelta], Lack | None]
    ) -> None:
        self._offers = {offer.name: offer for offer in offers}
        self._ranking = ranking
        self._lack = lack
        self._jobs = {offer.name: offer.jobs for offer in offers}
        self._groups: dict[object, Group] = {}

    def group(self, key: object, spec: JobSpec, needs: Needs) -> Group:
        """The group of jobs with this key, which stands for all that `spec` and `needs` say about places."""
        if key not in self._groups:
            self._groups[key] = self._made(spec, needs)
        return self._groups[key]

    def best(self, group: Group) -> tuple[Offer, bool] | None:
        """The best backend now and whether it has room; None where no credential is good enough."""
        while group.line:
            (full, _, _, name), jobs = group.line[0]
            if jobs == self._jobs[name]:
                return self._offers[name], not full
            heapq.heapreplace(group.line, self._entry(name, group.match))
        return None

    def took(self, name: str) -> None:
        """Note that a job goes there."""
        self._jobs[name] += 1

    def _made(self, spec: JobSpec, needs: Needs) -> Group:
        found = match(spec, needs, list(self._offers.values()), self._ranking)
        lacks = {one.name: lack for one in found.fitting if (lack := self._lack(one.name, needs.wall_time))}
        group = Group(found, lacks, frozenset(one.name for one in found.fitting if one.name not in lacks))
        group.line = [self._entry(name, found) for name in group.good]
        heapq.heapify(group.line)
        return group

    def _entry(self, name: str, found: Match) -> _Line:
        jobs = self._jobs[name]
        return standing_in_line(self._offers[name], found.ranks[name].value, jobs), jobs
