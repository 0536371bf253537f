"""Names for the files of a commit, given and taken back: on disks of this machine, and elsewhere."""

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from khomas.api.catalog.v1 import file_pb2
from khomas.storage import elsewhere, paths
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.elsewhere import Move
from khomas.storage.errors import ChecksumMismatch, PathRefused, UploadIncomplete
from khomas.storage.uploads import staging
from khomas.storage.uploads.intents import Intent
from khomas.storage.uploads.staging import Placement
from khomas.storage.uploads.uploads import PREFIX

T = TypeVar("T")
Placed = tuple[Placement, file_pb2.File]


class Placing:
    """Takes the steps of a commit that change storages. Every one can be taken again."""

    def __init__(self, protocols: Protocols, executor: Executor, *, fsync: bool) -> None:
        self._protocols = protocols
        self._executor = executor
        self._fsync = fsync

    async def place(self, intent: Intent, elements: Mapping[str, Element], *, again: bool) -> None:
        """Give all files their names; raise staging.Taken, or what is wrong with one."""
        here, there = self._apart(_files(intent), elements)
        await self._in_thread(lambda: self._place_here(here, elements))
        for element, placed in there.items():
            protocol, moves = self._protocols.of(elements[element]), list(map(_move, placed))
            try:
                await elsewhere.place(protocol, moves, element, again=again)
            except staging.NotThere:
                raise _incomplete(placed[0][0]) from None

    async def take_back(self, intent: Intent, elements: Mapping[str, Element]) -> None:
        """Undo it, also what was never done."""
        await self._take_back(_files(intent), elements)

    async def drop(self, intent: Intent, numbers: Sequence[int], elements: Mapping[str, Element]) -> None:
        """Remove some of the files that were placed: they are not wanted."""
        files = _files(intent)
        here, there = self._apart([files[number] for number in numbers], elements)
        await self._in_thread(lambda: self._take_back_here(here, elements))
        for element, placed in there.items():
            protocol = self._protocols.of(elements[element])
            await elsewhere.remove(protocol, [placement.path for placement, _ in placed])

    async def _take_back(self, files: Sequence[Placed], elements: Mapping[str, Element]) -> None:
        here, there = self._apart(files, elements)
        await self._in_thread(lambda: self._take_back_here(here, elements))
        for element, placed in there.items():
            await elsewhere.take_back(self._protocols.of(elements[element]), list(map(_move, placed)))

    def _apart(
        self, files: Sequence[Placed], elements: Mapping[str, Element]
    ) -> tuple[list[Placement], dict[str, list[Placed]]]:
        """Part what lies on disks of this machine from the rest, by StorageElement."""
        here: list[Placement] = []
        there: dict[str, list[Placed]] = {}
        for placement, file in files:
            if self._protocols.is_local(elements[placement.storage_element]):
                here.append(placement)
            else:
                there.setdefault(placement.storage_element, []).append((placement, file))
        return here, there

    def _place_here(self, placements: Sequence[Placement], elements: Mapping[str, Element]) -> None:
        for placement in placements:
            staged, target = self._names(placement, elements)
            try:
                staging.place(staged, target, placement.stamp, flush=self._fsync)
            except staging.NotThere:
                raise _incomplete(placement) from None
            except staging.Changed:
                raise ChecksumMismatch(
                    name=PREFIX + placement.upload, index=placement.index, expected="one", received="another"
                ) from None
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                message = f"{placement.storage_element} takes no path as long as {placement.path}; make it shorter."
                raise PathRefused(message, path=placement.path) from None

    def _take_back_here(self, placements: Sequence[Placement], elements: Mapping[str, Element]) -> None:
        for placement in placements:
            staging.take_back(*self._names(placement, elements))

    def _names(self, placement: Placement, elements: Mapping[str, Element]) -> tuple[Path, Path]:
        """Return where a file is staged and where it goes. Blocks."""
        element = elements[placement.storage_element]
        staged = self._protocols.local(element, paths.staging(placement.upload, placement.index))
        return staged, self._protocols.local(element, placement.path)

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action)


def _files(intent: Intent) -> list[Placed]:
    return list(zip(intent.placements, intent.catalog_request.files, strict=True))


def _move(placed: Placed) -> Move:
    placement, file = placed
    return Move(placement.stamp, placement.path, file.size_bytes, file.checksums.adler32)


def _incomplete(placement: Placement) -> UploadIncomplete:
    return UploadIncomplete(name=PREFIX + placement.upload, index=placement.index)
