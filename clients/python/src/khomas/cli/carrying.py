"""What put, get, cp and sync do, and what they say when they are stopped."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.output import answer, talk
from khomas.cli.running import Progress

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient
    from khomas.client.comparing import Known
    from khomas.client.pairs import Pair

_STOPPED = 130


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Say how to go on when somebody stops it."""
    try:
        yield
    except KeyboardInterrupt:
        talk(f"\nstopped; nothing is half there. {how}")
        raise SystemExit(_STOPPED) from None


async def put_files(client: "AsyncClient", pairs: "Sequence[Pair]", *, skip_same: bool, **wish: Any) -> list[Any]:
    """Bring files in; `skip_same` leaves out those that are in the catalogue already."""
    if skip_same:
        known = await client.files.comparing.named([pair.name for pair in pairs])
        pairs = await _missing_there(client, pairs, known)
    with Progress("put", sum(pair.path.stat().st_size for pair in pairs), files=len(pairs)) as progress:
        return await client.files.put(pairs, progress=progress, on_files=progress.files, **wish)


async def _missing_there(client: "AsyncClient", pairs: "Sequence[Pair]", known: "dict[str, Known]") -> "list[Pair]":
    there = [(pair, known[pair.name]) for pair in pairs if pair.name in known]
    differing = await client.files.comparing.differing(there)
    for pair, _ in there:
        if pair in differing:
            raise click.ClickException(
                f"{pair.name} is in the catalogue with another content than {pair.path}. Files never change: put it "
                f'under another name, or delete the other one first: khomas rm {pair.name} --reason "…"'
            )
    if there:
        talk(f"{len(there)} of {len(pairs)} files are in the catalogue already")
    return [pair for pair in pairs if pair.name not in known]


async def get_files(
    client: "AsyncClient", pairs: "Sequence[Pair]", sizes: dict[str, int], *, overwrite: bool, skip_same: bool
) -> "Sequence[Pair]":
    """Fetch files and return which; `skip_same` leaves out those that are here already."""
    wanted = await _missing_here(client, pairs) if skip_same else pairs
    with Progress("get", sum(sizes[pair.name] for pair in wanted), files=len(wanted)) as progress:
        await client.files.get(wanted, overwrite=overwrite, progress=progress, on_files=progress.files)
    return wanted


async def _missing_here(client: "AsyncClient", pairs: "Sequence[Pair]") -> "list[Pair]":
    here = [pair for pair in pairs if pair.path.exists()]
    known = await client.files.comparing.named([pair.name for pair in here])
    there = [(pair, known[pair.name]) for pair in here if pair.name in known]
    same = {pair for pair, _ in there} - await client.files.comparing.differing(there)
    if same:
        talk(f"{len(same)} of {len(pairs)} files are here already")
    return [pair for pair in pairs if pair not in same]


def say_put(one: Any, text: str, as_json: bool) -> None:
    """Tell a CommittedFile message."""
    row = {
        "name": one.name,
        "uid": one.uid,
        "size": one.size_bytes,
        "adler32": one.checksums.adler32,
        "sha256": one.checksums.sha256,
        "storage_element": one.storage_element,
        "path": one.path,
    }
    answer(row, text, as_json)


def say_came(name: str, path: Path, as_json: bool) -> None:
    """Tell a file that came; `name` is empty for what is kept with a job."""
    answer({"name": name, "path": str(path)}, str(path), as_json)


async def sizes_below(client: "AsyncClient", name: str) -> dict[str, int]:
    """Return the files below an LFN directory, or the file of this name, with their sizes."""
    below = {one: known.size async for one, known in client.files.comparing.below(name)}
    return below or {one.name: one.size_bytes for one in await client.files.stat([name])}
