"""A folder and a directory of the catalogue: what one of them is missing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from khomas.client.bytes_moving import Progress, nothing
from khomas.client.comparing import Comparing, Known
from khomas.client.errors import KhomasError
from khomas.client.files import Files
from khomas.client.pairs import Pair, below


class Action(StrEnum):
    """What becomes of a file."""

    # Into the catalogue.
    PUT = "put"
    # Into the catalogue, in the place of another file that is deleted there.
    PUT_REPLACING = "put replacing"
    # Into the folder.
    GET = "get"
    # Into the folder, over another content.
    GET_OVER = "get over"
    # Out of the folder.
    DELETE = "delete"
    # Nothing: files of the catalogue never change.
    DIFFERS = "differs"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with one file."""

    action: Action
    pair: Pair
    size: int


class Syncing:
    """Plans and does what makes one side like the other. A plan changes nothing."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._comparing: Comparing = files.comparing

    async def plan_in(
        self,
        folder: Path,
        directory: str,
        *,
        read_all: bool = False,
        replace: bool = False,
        progress: Progress = nothing,
    ) -> list[Step]:
        """Compare a folder with a directory that is to have all its files."""
        pairs = below(folder, directory)
        there = await self._there(directory, {pair.name for pair in pairs})
        both = [(pair, there[pair.name]) for pair in pairs if pair.name in there]
        differing = await self._comparing.differing(both, read_all=read_all, progress=progress)
        changed = Action.PUT_REPLACING if replace else Action.DIFFERS

        def action(pair: Pair) -> Action:
            if pair.name not in there:
                return Action.PUT
            return changed if pair in differing else Action.SAME

        return [Step(action(pair), pair, pair.path.stat().st_size) for pair in pairs]

    async def plan_out(
        self,
        directory: str,
        folder: Path,
        *,
        read_all: bool = False,
        delete: bool = False,
        progress: Progress = nothing,
    ) -> list[Step]:
        """Compare a directory with a folder that is to have all its files, and with `delete` no others."""
        there = await self._there(directory)
        wanted = {name: Pair(inside(folder, name.removeprefix(f"{directory}/")), name) for name in there}
        here = {pair.path: pair for pair in _here(folder, directory)}
        both = [(pair, there[name]) for name, pair in wanted.items() if pair.path in here]
        differing = await self._comparing.differing(both, read_all=read_all, progress=progress)

        def action(pair: Pair) -> Action:
            if pair.path not in here:
                return Action.GET
            return Action.GET_OVER if pair in differing else Action.SAME

        steps = [Step(action(pair), pair, there[name].size) for name, pair in sorted(wanted.items())]
        kept = {pair.path for pair in wanted.values()}
        gone = [pair for path, pair in here.items() if path not in kept] if delete else []
        return steps + [Step(Action.DELETE, pair, pair.path.stat().st_size) for pair in gone]

    async def carry_out(
        self,
        steps: Sequence[Step],
        *,
        reason: str = "",
        storage_elements: Sequence[str] = (),
        datasets: Sequence[str] = (),
        progress: Progress = nothing,
        on_files: Progress = nothing,
    ) -> Mapping[Pair, KhomasError]:
        """Do what a plan says, and return what went wrong; files are deleted only when nothing did."""
        put = [step.pair for step in steps if step.action in (Action.PUT, Action.PUT_REPLACING)]
        await self._files.put(
            put,
            storage_elements=storage_elements,
            datasets=datasets,
            replaced={step.pair.name for step in steps if step.action is Action.PUT_REPLACING},
            reason=reason,
            progress=progress,
            on_files=on_files,
        )
        get = [step.pair for step in steps if step.action in (Action.GET, Action.GET_OVER)]
        failures = await self._files.fetch(get, progress=progress, on_files=on_files)
        for step in steps:
            if step.action is Action.DELETE and not failures:
                step.pair.path.unlink(missing_ok=True)
        return failures

    async def _there(self, directory: str, only: Collection[str] | None = None) -> dict[str, Known]:
        found = self._comparing.below(directory)
        return {name: known async for name, known in found if only is None or name in only}


def _here(folder: Path, directory: str) -> list[Pair]:
    return below(folder, directory) if folder.is_dir() else []


def inside(folder: Path, relative: str) -> Path:
    """Return where a file goes; names in the catalogue have no "..", and none may lead out of the folder."""
    path = folder / relative
    if ".." in path.relative_to(folder).parts:
        raise KhomasError(f"{relative} would lie outside of {folder}")
    return path
