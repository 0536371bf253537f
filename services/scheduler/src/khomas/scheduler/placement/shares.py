"""Who gets free slots: a tree of accounts with weights, limits and reserves. Rules on values alone."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from khomas.scheduler.config import ShareSettings

ROOT = ""
# What a job counts for while it runs: what it will use is not known yet.
_RUNNING_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """What an account has, and has used in CPU seconds."""

    queued: int = 0
    running: int = 0
    # What is long ago counted less.
    used_s: float = 0.0
    last_day_s: float = 0.0

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.queued + other.queued,
            self.running + other.running,
            self.used_s + other.used_s,
            self.last_day_s + other.last_day_s,
        )


class Tree:
    """Accounts by path. Jobs are charged to its leaves."""

    def __init__(self, settings: Mapping[str, ShareSettings], default: str) -> None:
        named = {default: ShareSettings(), **settings} if settings else {}
        paths = {part for path in named for part in _upwards(path)}
        self.default = default
        self.accounts = {path: named.get(path, ShareSettings()) for path in sorted(paths)}
        self.children: dict[str, list[str]] = {path: [] for path in [ROOT, *self.accounts]}
        for path in self.accounts:
            self.children[parent(path)].append(path)
        self.leaves = [path for path in self.accounts if not self.children[path]]
        self._lines = {path: _upwards(path) for path in self.accounts}
        self._classes = {
            path: max(self.accounts[part].priority_class for part in line) for path, line in self._lines.items()
        }
        self.reserves = {path: one.reserved for path, one in self.accounts.items() if one.reserved}
        self.below = {path: frozenset(leaf for leaf in self.leaves if path in self._lines[leaf]) for path in paths}

    def __bool__(self) -> bool:
        return bool(self.accounts)

    def line(self, path: str) -> list[str]:
        """The account and those above it."""
        return self._lines[path]

    def priority_class(self, path: str) -> int:
        """The highest of its own and of those above it."""
        return self._classes[path]

    def entitled(self, path: str) -> float:
        """The part of the whole that weights entitle it to."""
        part = 1.0
        for one in _upwards(path):
            siblings = self.children[parent(one)]
            part *= self.accounts[one].weight / sum(self.accounts[other].weight for other in siblings)
        return part

    def rolled_up(self, loads: Mapping[str, Load]) -> dict[str, Load]:
        """The loads of all accounts and of the root, from those of the leaves."""
        sums = {path: Load() for path in self.children}
        for leaf, load in loads.items():
            for path in [*_upwards(leaf), ROOT]:
                if path in sums:
                    sums[path] += load
        return sums

    def over_quota(self, leaf: str, sums: Mapping[str, Load]) -> str:
        """Say why no further job of it may start; empty when one may."""
        for path in self.line(leaf):
            account, load = self.accounts[path], sums[path]
            if account.max_running is not None and load.running >= account.max_running:
                return f"{path} has {load.running} of at most {account.max_running} running jobs"
            if account.max_cpu_per_day and load.last_day_s >= account.max_cpu_per_day.total_seconds():
                hours = account.max_cpu_per_day.total_seconds() / 3600
                return f"{path} has used {load.last_day_s / 3600:.1f} of {hours:g} CPU hours in the last day"
        return ""

    def queue_over(self, leaf: str, adding: int, sums: Mapping[str, Load]) -> str:
        """The account whose queue would get too long; empty when there is room."""
        for path in self.line(leaf):
            most = self.accounts[path].max_queued
            if most is not None and sums[path].queued + adding > most:
                return path
        return ""


def parent(path: str) -> str:
    """The account above."""
    return path.rpartition("/")[0]


def _upwards(path: str) -> list[str]:
    found = []
    while path:
        found.append(path)
        path = parent(path)
    return found


def decayed(used: Iterable[tuple[float, float]], half_life: timedelta) -> float:
    """CPU seconds, counted half for every half-life; pairs of age and CPU, both in seconds."""
    half = half_life.total_seconds()
    return sum((cpu * math.exp2(-age / half) for age, cpu in used), 0.0)


@dataclass(slots=True)
class Allotment:
    """How many jobs of which account may start, and which may not and why."""

    given: dict[str, int] = field(default_factory=dict)
    over_quota: dict[str, str] = field(default_factory=dict)


def allot(tree: Tree, loads: Mapping[str, Load], waiting: Mapping[str, int], room: int, capacity: int) -> Allotment:
    """Give free slots one by one: the highest class first, then who has used least of what he is entitled to.

    `waiting` jobs by leaf; `capacity` is what `room` is left of.
    """
    dealing = _Dealing(tree, tree.rolled_up(loads), dict(waiting), room, capacity)
    for leaf in dealing.turns():
        dealing.give(leaf)
    return dealing.allotment


@dataclass(slots=True)
class _Dealing:
    tree: Tree
    sums: dict[str, Load]
    waiting: dict[str, int]
    room: int
    capacity: int
    allotment: Allotment = field(default_factory=Allotment)

    def turns(self) -> Iterator[str]:
        """Leaves in the order in which they get slots."""
        while self.room > 0:
            open_ones = [leaf for leaf in self.tree.leaves if self._may(leaf)]
            if not open_ones:
                return
            highest = max(map(self.tree.priority_class, open_ones))
            yield self._neediest([leaf for leaf in open_ones if self.tree.priority_class(leaf) == highest])

    def give(self, leaf: str) -> None:
        """One slot for this leaf."""
        self.room -= 1
        self.waiting[leaf] -= 1
        self.allotment.given[leaf] = self.allotment.given.get(leaf, 0) + 1
        for path in [*self.tree.line(leaf), ROOT]:
            self.sums[path] += Load(running=1)

    def _may(self, leaf: str) -> bool:
        if self.waiting.get(leaf, 0) <= 0 or leaf in self.allotment.over_quota:
            return False
        if why := self.tree.over_quota(leaf, self.sums):
            self.allotment.over_quota[leaf] = why
            return False
        return self.room > self._kept_from(leaf)

    def _kept_from(self, leaf: str) -> int:
        """Free slots that others have reserved and do not use yet."""
        return sum(
            max(0, math.ceil(reserved * self.capacity) - self.sums[path].running)
            for path, reserved in self.tree.reserves.items()
            if leaf not in self.tree.below[path]
        )

    def _neediest(self, leaves: list[str]) -> str:
        """Go down from the root, each time to who has used least for his weight."""
        at = ROOT
        while True:
            below = [one for one in self.tree.children[at] if not self.tree.below[one].isdisjoint(leaves)]
            if not below:
                return at
            at = min(below, key=lambda one: (self._used(one), one))

    def _used(self, path: str) -> float:
        load = self.sums[path]
        return (load.used_s + load.running * _RUNNING_SECONDS) / self.tree.accounts[path].weight
