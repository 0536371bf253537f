"""What an exporter is: the entry-point group `khomas.archive.exporters` names instances of it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from khomas.api.archive.v1 import obscore_pb2
from khomas.api.archive.v1 import release_pb2 as pb
from khomas.api.catalog.v1 import file_pb2
from khomas.kit.errors import FieldInvalid
from khomas.kit.plugins import load_all

GROUP = "khomas.archive.exporters"
Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What an exporter may read. Nothing of it changes while it reads."""

    release: pb.Release
    products: Sequence[pb.Product]
    # Records by identifier.
    records: Callable[[], AsyncIterator[obscore_pb2.ObsCoreRecord]]
    # Files of these LFNs, or of a dataset, as the catalogue has them.
    files: Callable[[Sequence[str]], Awaitable[Sequence[file_pb2.File]]]
    members: Callable[[str], Awaitable[Sequence[file_pb2.File]]]
    # Local paths of files, by LFN, as long as the block lasts. Ask for some at a time.
    opened: Callable[[Sequence[file_pb2.File]], AbstractAsyncContextManager[Mapping[str, Path]]]


class Exporter(Protocol):
    """Makes files of a release. Equal content and options give equal bytes, for files of a release never change."""

    # One sentence: what it makes.
    description: str
    # Option to what it means, for error messages.
    options: Mapping[str, str]

    async def export(self, content: Content, options: Options, folder: Path) -> Sequence[Path]:
        """Write files into the folder and return them; they keep their names."""
        ...


def installed_exporters() -> Mapping[str, Exporter]:
    """Return the installed exporters by name."""
    return load_all(GROUP)


def check_options(exporter: Exporter, options: Options) -> None:
    """Refuse options that the exporter does not have."""
    for name in options:
        if name not in exporter.options:
            known = ", ".join(f"{key} ({meaning})" for key, meaning in exporter.options.items()) or "none"
            raise FieldInvalid.of(f"options.{name}", f"is no option of this exporter; it has: {known}")
