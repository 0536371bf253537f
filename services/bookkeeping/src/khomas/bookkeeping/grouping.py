"""From files to groups, and when a group is complete."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from khomas.api.bookkeeping.v1.production_pb2 import DataSource
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.common.v1.value_pb2 import Value
from khomas.bookkeeping.stages import ALL
from khomas.kit.templating import scalar_text


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that a stage takes in."""

    name: str
    uid: str
    group: str = ""


@dataclass(slots=True)
class Group:
    """Files that make one work item; without `uid` it is not stored yet."""

    value: str
    uid: str = ""
    stored_files: int = 0
    added: list[Arrived] = field(default_factory=list)

    @property
    def file_count(self) -> int:
        """How many files it has, with the new ones."""
        return self.stored_files + len(self.added)


def group_value(source: DataSource, file: File) -> str:
    """Return which group a file belongs to; a file without the metadata is a group of its own name."""
    if source.group_by in ("", ALL):
        return source.group_by
    value = file.metadata.get(source.group_by)
    return file.name if value is None else _text(value)


def _text(value: Value) -> str:
    kind = value.WhichOneof("kind")
    if kind == "time":
        return value.time.ToDatetime().isoformat() + "Z"
    return scalar_text(getattr(value, kind)) if kind else ""


def gather(files: Iterable[Arrived], growing: Sequence[Group], *, alone: bool, max_files: int) -> list[Group]:
    """Add files to groups that still grow, or to new ones; return the groups that got some.

    With `alone` each file is its own group.
    """
    last = {group.value: group for group in growing if group.file_count < max_files}
    changed: dict[int, Group] = {}
    for file in files:
        group = None if alone else last.get(file.group)
        if group is None or group.file_count >= max_files:
            group = last[file.group] = Group(file.group)
        group.added.append(file)
        changed[id(group)] = group
    return list(changed.values())


@dataclass(frozen=True, slots=True)
class Ripeness:
    """When a group is complete; `None` where no age makes it so."""

    # From so many files on, at once.
    full: int
    # From so many files on, when none came after this moment.
    enough: int
    quiet_since: datetime | None
    # Whatever its size, when its first file came before this moment.
    begun_before: datetime | None


def ripeness(source: DataSource, *, full: int, drained: bool, now: datetime) -> Ripeness:
    """Return the rule for groups of this source now; with `drained` no more files will come."""
    waits_for_all = source.group_by == ALL and not source.HasField("settle")
    settle = source.settle.ToTimedelta() if not drained else timedelta()
    return Ripeness(
        full=full,
        enough=(source.min_files or 1) if source.group_by else 1,
        quiet_since=None if waits_for_all and not drained else now - settle,
        begun_before=now - source.flush_after.ToTimedelta() if source.HasField("flush_after") else None,
    )
