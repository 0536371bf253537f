"""Where copies go: by what is there, space, site and weight. Values in, values out."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

from khomas.api.storage.v1 import rule_pb2 as pb

_UNKNOWN_SPACE = 1 << 60


class CopyState(IntEnum):
    """How one wanted copy stands; all but PENDING as in the contract."""

    # A StorageElement is to be chosen.
    PENDING = 0
    OK = pb.ReplicationRule.STATE_OK
    REPLICATING = pb.ReplicationRule.STATE_REPLICATING
    STUCK = pb.ReplicationRule.STATE_STUCK


@dataclass(frozen=True, slots=True)
class Place:
    """A StorageElement that matches a rule."""

    id: str
    site: str = ""
    weight: int = 1
    # None = nobody can tell.
    free_bytes: int | None = None
    reachable: bool = True
    takes_files: bool = True
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """One wanted copy of one file, as it is stored."""

    file_uid: str
    number: int
    file: str
    size_bytes: int
    storage_element: str = ""
    moving_from: str = ""
    state: int = CopyState.PENDING
    reason: int = 0
    message: str = ""
    transfer_uid: str = ""
    refused: str = ""
    listing: int = 0
    state_time: datetime | None = None

    @property
    def refused_places(self) -> frozenset[str]:
        """Return where transfers have failed for good."""
        return frozenset(name for name in self.refused.split(",") if name)


@dataclass(frozen=True, slots=True)
class Located:
    """A file and where good replicas of it lie that nobody is deleting."""

    uid: str
    name: str
    size_bytes: int
    there: frozenset[str]


class Placer:
    """Chooses places for copies, and remembers the space that it has promised."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = {place.id: place for place in places}
        self._free = {place.id: place.free_bytes for place in self._places.values()}

    def place(self, name: str) -> Place | None:
        """Return a place; None if it does not match the rule (any more)."""
        return self._places.get(name)

    def choose(
        self,
        file: Located,
        taken: Collection[str],
        refused: Collection[str],
        together: Sequence[str] = (),
    ) -> Place | int:
        """Return the place for one more copy, or the CopyReason why there is none.

        With `together` nothing else is chosen.
        """
        known = [self._places[name] for name in together if name in self._places] or list(self._places.values())
        free = [place for place in known if place.id not in taken]
        if there := [place for place in free if place.id in file.there and not place.draining]:
            return min(there, key=lambda place: (-place.weight, place.id))
        takers = [place for place in known if place.takes_files and not place.draining]
        open_ = [place for place in takers if place.id not in taken]
        tried = [place for place in open_ if place.id not in refused]
        roomy = [place for place in tried if self._room(place.id) >= max(file.size_bytes, 1)]
        obstacles = (
            (takers, pb.COPY_REASON_NO_ELEMENT),
            (open_, pb.COPY_REASON_TOO_FEW_ELEMENTS),
            (file.there, pb.COPY_REASON_NO_SOURCE),
            (tried, pb.COPY_REASON_TRANSFERS_FAILED),
            (roomy, pb.COPY_REASON_NO_SPACE),
        )
        if reason := next((reason for left, reason in obstacles if not left), None):
            return reason
        chosen = min(roomy, key=lambda place: self._rank(place, self._sites(taken)))
        self.promise(chosen.id, file.size_bytes)
        return chosen

    def promise(self, name: str, size_bytes: int) -> None:
        """Count bytes as taken."""
        free = self._free.get(name)
        if free is not None:
            self._free[name] = free - size_bytes

    def group(
        self, copies: int, total_bytes: int, bytes_there: Mapping[str, int], kept: Sequence[str] = ()
    ) -> list[str]:
        """Return the places for all files together: those kept, then where most of them lie and all of them fit."""
        chosen = [name for name in kept if name in self._places and not self._places[name].draining][:copies]
        while len(chosen) < copies:
            left = [
                place
                for place in self._places.values()
                if place.id not in chosen
                and not place.draining
                and (place.takes_files or bytes_there.get(place.id, 0) >= total_bytes > 0)
            ]
            if not left:
                break

            def rank(place: Place) -> tuple[object, ...]:
                there = bytes_there.get(place.id, 0)
                fits = self._room(place.id) >= total_bytes - there
                return (not fits, -there, *self._rank(place, self._sites(chosen)))

            chosen.append(min(left, key=rank).id)
        return chosen

    def _rank(self, place: Place, sites: Collection[str]) -> tuple[bool, bool, int, str]:
        near_another = bool(place.site) and place.site in sites
        return not place.reachable, near_another, -place.weight * self._room(place.id), place.id

    def _sites(self, names: Iterable[str]) -> set[str]:
        return {self._places[name].site for name in names if name in self._places}

    def _room(self, name: str) -> int:
        free = self._free[name]
        return _UNKNOWN_SPACE if free is None else free


@dataclass(frozen=True, slots=True)
class Wish:
    """What a rule wants of every file."""

    copies: int
    together: tuple[str, ...] = ()
    listing: int = 0
    now: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the copies of one file."""

    kept: tuple[Copy, ...]
    dropped: tuple[Copy, ...]


def planned(file: Located, copies: Sequence[Copy], wish: Wish, placer: Placer) -> Plan:
    """Bring the copies of a file in line with what is there and what is wanted."""
    best_first = sorted(copies, key=lambda copy: (_worth(copy, file), copy.number))
    kept = [_judged(copy, file, wish, placer) for copy in best_first[: wish.copies]]
    number = max((copy.number for copy in copies), default=-1) + 1
    kept += [
        Copy(file.uid, number + extra, file.name, file.size_bytes, state_time=wish.now)
        for extra in range(wish.copies - len(kept))
    ]
    taken = {copy.storage_element for copy in kept} | {copy.moving_from for copy in kept} - {""}
    done: list[Copy] = []
    for copy in kept:
        if copy.state in (CopyState.PENDING, CopyState.STUCK):
            copy = _placed(copy, file, taken, wish, placer)  # noqa: PLW2901  the same copy with its place
            taken.add(copy.storage_element)
        done.append(replace(copy, listing=wish.listing))
    return Plan(tuple(done), tuple(best_first[wish.copies :]))


def _worth(copy: Copy, file: Located) -> int:
    """Return how little a copy is worth: 0 for one that is there."""
    if copy.storage_element in file.there:
        return 0
    return 1 if copy.moving_from in file.there else 2 if copy.state == CopyState.REPLICATING else 3


def _judged(copy: Copy, file: Located, wish: Wish, placer: Placer) -> Copy:
    """Return a copy as it stands by what is there now."""
    place = placer.place(copy.storage_element)
    if copy.moving_from in file.there and not _draining(copy.moving_from, placer):
        # The drain was taken back.
        stays = {"storage_element": copy.moving_from, "moving_from": "", "transfer_uid": "", "reason": 0, "message": ""}
        return _changed(copy, wish, state=CopyState.OK, **stays)
    if copy.storage_element in file.there:
        if not _draining(copy.storage_element, placer):
            arrived = {"state": CopyState.OK, "reason": 0, "message": "", "moving_from": "", "refused": ""}
            return _changed(copy, wish, **arrived)
        return _changed(
            copy, wish, state=CopyState.PENDING, moving_from=copy.storage_element, storage_element="", transfer_uid=""
        )
    lost = copy.state == CopyState.OK
    elsewhere = copy.state == CopyState.REPLICATING and (place is None or place.draining)
    if lost or elsewhere:
        return _changed(copy, wish, state=CopyState.PENDING, storage_element="", transfer_uid="")
    return copy


def _draining(name: str, placer: Placer) -> bool:
    place = placer.place(name)
    return place is not None and place.draining


def _placed(copy: Copy, file: Located, taken: Collection[str], wish: Wish, placer: Placer) -> Copy:
    chosen = placer.choose(file, set(taken) - {""}, copy.refused_places, wish.together)
    if not isinstance(chosen, Place):
        return _changed(copy, wish, state=CopyState.STUCK, reason=chosen, storage_element="", transfer_uid="")
    there = chosen.id in file.there
    return _changed(
        copy,
        wish,
        state=CopyState.OK if there else CopyState.REPLICATING,
        storage_element=chosen.id,
        moving_from="" if there else copy.moving_from,
        transfer_uid="",
        reason=0,
        message="",
    )


def _changed(copy: Copy, wish: Wish, **values: object) -> Copy:
    """Return a copy with new values; the time of its state moves when the state does."""
    new: Copy = replace(copy, **values)  # type: ignore[arg-type]  # names and types of its own fields
    return replace(new, state_time=wish.now) if new.state != copy.state else new
