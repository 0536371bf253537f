"""Children by input files."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from khomas.api.scheduler.v1 import splitter_pb2 as pb
from khomas.scheduler.intake.frozen import Groups
from khomas.scheduler.splitters.child import Child

_OWN_KEYS = frozenset({"input", "input_stem"})


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is to be given to a child."""

    # Position of its input in the spec.
    position: int
    name: str
    size_bytes: int = 0
    # Value of the grouping key.
    value: str = ""
    # Where it can be read.
    sites: frozenset[str] = frozenset()


class FileSplitter:
    """Each child gets some of the input files."""

    def __init__(self, splitter: pb.FileSplitter, groups: Groups | None) -> None:
        self._groups = groups or Groups((), ())
        self._key = splitter.group_key
        # "fits.object" is written "{fits_object}".
        self._key_name = splitter.group_key.replace(".", "_")
        self.names = _OWN_KEYS | {self._key_name} if self._key else _OWN_KEYS

    def __len__(self) -> int:
        return len(self._groups)

    def child(self, index: int) -> Child:
        """The files of this child; {input} is the file name of the first one, {input_stem} that up to the first dot."""
        files = self._groups[index]
        first = files[0][1].rpartition("/")[2]
        values = {"input": first, "input_stem": first.partition(".")[0]}
        if self._key:
            values[self._key_name] = self._groups.values[index]
        return Child(values, files=files)


def divide(splitter: pb.FileSplitter, files: Sequence[InputFile]) -> Groups:
    """Cut the files into children, in their order; files of one group stay together."""
    starts: list[int] = []
    values: list[str] = []
    ordered: list[tuple[int, str]] = []
    groups = _by_value(files, bool(splitter.group_key)).items()
    if splitter.grouping == pb.FileSplitter.GROUPING_BY_SITE:
        parts = [(value, part) for value, members in groups for _, part in by_site(members)]
    else:
        parts = list(groups)
    for value, members in parts:
        count = size = 0
        for file in members:
            over = splitter.bytes_per_job and size + file.size_bytes > splitter.bytes_per_job
            if not count or count == _most(splitter) or over:
                starts.append(len(ordered))
                values.append(value)
                count = size = 0
            ordered.append((file.position, file.name))
            count, size = count + 1, size + file.size_bytes
    return Groups(ordered, starts, values if splitter.group_key else ())


def _most(splitter: pb.FileSplitter) -> int:
    """Files a child: as asked for; else as many as bytes or group allow, where one of them was asked for."""
    return splitter.files_per_job or (-1 if splitter.bytes_per_job or splitter.group_key else 1)


def _by_value(files: Iterable[InputFile], grouped: bool) -> Mapping[str, list[InputFile]]:
    groups: dict[str, list[InputFile]] = {}
    for file in files:
        groups.setdefault(file.value if grouped else "", []).append(file)
    return groups


def by_site(files: Sequence[InputFile]) -> list[tuple[str, list[InputFile]]]:
    """Group files so that each group is at one site, the sites that have most first.

    Files that can be read at no site are the last group, at no site.
    """
    rest, groups = list(files), list[tuple[str, list[InputFile]]]()
    while rest:
        numbers = Counter(site for file in rest for site in sorted(file.sites))
        if not numbers:
            return [*groups, ("", rest)]
        best = min(numbers, key=lambda site: (-numbers[site], site))
        groups.append((best, [file for file in rest if best in file.sites]))
        rest = [file for file in rest if best not in file.sites]
    return groups
