"""What was resolved at the submission and stays so: files of datasets and queries, groups, chosen children."""

import json
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Picks:
    """Indices as ranges, both ends included: the children of an array that is tried again."""

    ranges: tuple[tuple[int, int], ...]
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = [last - first + 1 for first, last in self.ranges]
        # frozen, but this is still the making of it
        object.__setattr__(self, "_starts", (0, *accumulate(sizes)))

    @classmethod
    def of(cls, indices: Sequence[int]) -> "Picks":
        """Compress ascending indices."""
        ranges: list[tuple[int, int]] = []
        for index in indices:
            if ranges and ranges[-1][1] == index - 1:
                ranges[-1] = (ranges[-1][0], index)
            else:
                ranges.append((index, index))
        return cls(tuple(ranges))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(position)
        at = bisect_right(self._starts, position) - 1
        return self.ranges[at][0] + position - self._starts[at]


@dataclass(frozen=True, slots=True)
class Groups:
    """Input files of the children: (position of the input, LFN) in order, cut where a child begins."""

    files: Sequence[tuple[int, str]]
    starts: Sequence[int]
    # Value of the grouping key of each child; empty without a key.
    values: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Sequence[tuple[int, str]]:
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.files)
        return self.files[self.starts[index] : end]


@dataclass(frozen=True, slots=True)
class Frozen:
    """What was resolved at the submission."""

    # By position of the input in the spec: its LFNs.
    inputs: Mapping[int, Sequence[str]] = field(default_factory=dict)
    groups: Groups | None = None
    picks: Picks | None = None

    def pack(self) -> bytes:
        """Write for the database; nothing takes no bytes."""
        content = {
            "inputs": {str(position): list(names) for position, names in self.inputs.items()},
            "groups": [list(self.groups.files), list(self.groups.starts), list(self.groups.values)]
            if self.groups
            else None,
            "picks": list(self.picks.ranges) if self.picks else None,
        }
        if not any(content.values()):
            return b""
        return zlib.compress(json.dumps(content).encode(), level=1)

    @classmethod
    def unpack(cls, packed: bytes) -> "Frozen":
        """Read what `pack` wrote."""
        if not packed:
            return cls()
        content = json.loads(zlib.decompress(packed))
        groups, picks = content["groups"], content["picks"]
        return cls(
            {int(position): names for position, names in content["inputs"].items()},
            Groups([(at, name) for at, name in groups[0]], groups[1], groups[2]) if groups else None,
            Picks(tuple((first, last) for first, last in picks)) if picks else None,
        )
