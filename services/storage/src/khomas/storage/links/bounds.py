"""How the free streams are shared out among links, within what bounds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from khomas.storage.transfers.turns import ends

SITE = "site:"


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that an operator has set on all links between two ends together; an empty end is any."""

    source: str
    destination: str
    max_streams: int
    max_rate: int

    def matches(self, source: str, destination: str, sites: Mapping[str, str]) -> bool:
        """Tell whether a link is among them; `sites` says where StorageElements are."""
        return _is(self.source, source, sites) and _is(self.destination, destination, sites)


def _is(end: str, element: str, sites: Mapping[str, str]) -> bool:
    if end.startswith(SITE):
        return sites.get(element, "") == end.removeprefix(SITE)
    return end in ("", element)


def shared_out(
    lanes: Sequence[str],
    free: int,
    *,
    streams: Mapping[str, int],
    running: Mapping[str, int],
    limits: Sequence[Limit],
    sites: Mapping[str, str],
) -> dict[str, int]:
    """Return how many more streams each lane gets: one after the other to whoever has fewest, earlier lanes first."""
    busy = {name: running.get(name, 0) for name in lanes}
    bounds = [one for one in limits if one.max_streams]
    members = {name: [one for one in bounds if one.matches(*ends(name), sites)] for name in lanes}
    left = {one: one.max_streams for one in bounds}
    for name, count in running.items():
        for one in bounds:
            if one.matches(*ends(name), sites):
                left[one] -= count
    given = dict.fromkeys(lanes, 0)
    while free > 0:
        open_ = [name for name in lanes if busy[name] < streams[name] and all(left[one] > 0 for one in members[name])]
        if not open_:
            break
        chosen = min(open_, key=busy.__getitem__)
        given[chosen] += 1
        busy[chosen] += 1
        free -= 1
        for one in members[chosen]:
            left[one] -= 1
    return {name: count for name, count in given.items() if count}
