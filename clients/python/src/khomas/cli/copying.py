"""Commands that copy between this machine and the catalogue: cp, sync."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from khomas.cli import places
from khomas.cli.carrying import get_files, put_files, resumable, say_came, say_put, sizes_below
from khomas.cli.output import format_of, in_json, listing, talk
from khomas.cli.output import show as show_rows
from khomas.cli.places import Kind, Place, place_of
from khomas.cli.running import Progress, waiting, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient
    from khomas.client.errors import KhomasError
    from khomas.client.pairs import Pair
    from khomas.client.syncing import Step

_COLUMNS = ("action", "name", "path", "size", "message")
_AGAIN = "The same command goes on."


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
@click.option("--se", multiple=True, help="Into the catalogue: the StorageElement; the first that has room is taken.")
@click.option("--overwrite", is_flag=True, help="Replace local files that differ.")
@waiting("To an SE: wait for the copies, with a progress bar.")
@in_json
def cp(
    sources: tuple[str, ...],
    target: str,
    se: tuple[str, ...],
    overwrite: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Copy files and folders; what is there already with the same content is left out.

    A relative path is a local one; an absolute one is an LFN if the catalogue has its first segment. file:PATH,
    lfn:NAME and se:NAME are explicit. With several sources, or with a / at its end, TARGET is a directory; a single
    file goes into a local folder that exists.
    """

    async def work(client: "AsyncClient") -> list[str]:
        to = await place_of(client, target)
        of = [await place_of(client, source) for source in sources]
        into = to.folder or len(of) > 1
        match _ways(of, to):
            case Kind.LOCAL, Kind.LFN:
                await _bring_in(client, of, to, into, se, as_json)
            case Kind.LFN, Kind.LOCAL:
                await _fetch(client, of, to, into, overwrite, as_json)
            case _:
                return await _want_copies(client, of, to, as_json)
        return []

    with resumable(_AGAIN):
        transfers = with_client(work)
        if wait and transfers:
            from khomas.cli.transfers import waited

            return waited(transfers, timeout, as_json)
    return 0


def _ways(sources: Sequence[Place], target: Place) -> tuple[Kind, Kind]:
    kinds = {source.kind for source in sources}
    way = (sources[0].kind, target.kind)
    if len(kinds) > 1:
        raise click.UsageError("the sources are partly here and partly in the catalogue; copy them one after the other")
    if way not in {(Kind.LOCAL, Kind.LFN), (Kind.LFN, Kind.LOCAL), (Kind.LFN, Kind.ELEMENT)}:
        instead = {
            (Kind.LOCAL, Kind.LOCAL): "both are on this machine: use cp; lfn:/… names a file of the catalogue",
            (Kind.LFN, Kind.LFN): "a file of the catalogue has one name; se:NAME is where it gets another copy",
            (Kind.LOCAL, Kind.ELEMENT): "give the file a name in the catalogue: khomas cp FILE lfn:/… --se NAME",
        }
        raise click.UsageError(instead.get(way, f"nothing can be copied from {way[0]}: to {way[1]}:"))
    return way


async def _bring_in(
    client: "AsyncClient", sources: Sequence[Place], to: Place, into: bool, se: Sequence[str], as_json: bool
) -> None:
    from khomas.client.pairs import below

    pairs: list[Pair] = []
    for source in sources:
        pairs += below(source.path, f"{to.text}/{source.path.absolute().name}" if into else to.text)
    for one in await put_files(client, pairs, skip_same=True, storage_elements=se):
        say_put(one, one.name, as_json)


async def _fetch(
    client: "AsyncClient", sources: Sequence[Place], to: Place, into: bool, overwrite: bool, as_json: bool
) -> None:
    from khomas.client.pairs import Pair
    from khomas.client.syncing import inside

    sizes: dict[str, int] = {}
    pairs: list[Pair] = []
    for source in sources:
        found = await sizes_below(client, source.text)
        sizes |= found
        # A folder that exists may be what an interrupted copy of a directory has left: that is gone on with.
        inner = into or (list(found) == [source.text] and to.path.is_dir())
        start = to.path / source.text.rpartition("/")[2] if inner else to.path
        pairs += [Pair(inside(start, name[len(source.text) :].lstrip("/")), name) for name in found]
    if len({pair.path for pair in pairs}) < len(pairs):
        raise click.UsageError("two sources have the same last segment; copy them one after the other")
    for one in await get_files(client, pairs, sizes, overwrite=overwrite, skip_same=True):
        say_came(one.name, one.path, as_json)


async def _want_copies(client: "AsyncClient", sources: Sequence[Place], to: Place, as_json: bool) -> list[str]:
    from khomas.cli.transfers import say_wanted
    from khomas.client.errors import from_status

    made: list[str] = []
    refused: KhomasError | None = None
    names = [name for source in sources for name in await sizes_below(client, source.text)]
    results = await client.storage.transfer(names, to.text)
    for result in results:
        if result.HasField("transfer"):
            made.append(result.transfer.name)
            say_wanted(result.transfer, as_json)
        else:
            refused = refused or from_status(result.error)
    if refused is not None:
        raise refused
    return made


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--checksum", is_flag=True, help="Read all local files of equal size, also those that have not changed.")
@click.option("--delete", is_flag=True, help="Delete local files that the catalogue does not have.")
@click.option(
    "--delete-replaced",
    default="",
    metavar="REASON",
    help="Replace files of the catalogue that differ, which are deleted for good.",
)
@click.option("--se", multiple=True, help="Into the catalogue: the StorageElement; the first that has room is taken.")
@click.option("--dataset", multiple=True, help="Into the catalogue: the dataset that new files join.")
@click.option("--all", "show_all", is_flag=True, help="List also what is the same.")
@listing
def sync(source: str, target: str, dry_run: bool, show_all: bool, **options: Any) -> int:
    """Bring over what is missing or differs: FOLDER lfn:/DIR, or lfn:/DIR FOLDER.

    Size is compared first, then adler32; a local file that has not changed since it was last read is not read again.
    Files of the catalogue never change: one that differs is told, and replaced only with --delete-replaced.
    """
    form = format_of(options)
    with resumable(_AGAIN):
        steps, failures = with_client(lambda client: _synced(client, source, target, dry_run, options))
    rows = [_row(step, failures) for step in steps]
    shown = rows if show_all else [row for row in rows if row["action"] != "same"]
    if shown or form.json:
        show_rows(shown, form, _COLUMNS, "name")
    counts = Counter(str(row["action"]) for row in rows)
    talk(
        (", ".join(f"{number} {action}" for action, number in counts.items()) or "nothing there")
        + ("; nothing was done" if dry_run else "")
    )
    return 1 if counts["differs"] or failures else 0


async def _synced(
    client: "AsyncClient", source: str, target: str, dry_run: bool, options: Mapping[str, Any]
) -> "tuple[list[Step], Mapping[Pair, KhomasError]]":
    from khomas.client.syncing import Action

    steps = await _plan(client, source, target, options)
    if dry_run:
        return steps, {}
    moving = [step for step in steps if step.action not in (Action.SAME, Action.DIFFERS, Action.DELETE)]
    with Progress("sync", sum(step.size for step in moving), files=len(moving)) as progress:
        failures = await client.syncing.carry_out(
            steps,
            reason=options["delete_replaced"],
            storage_elements=options["se"],
            datasets=options["dataset"],
            progress=progress,
            on_files=progress.files,
        )
    return steps, failures


async def _plan(client: "AsyncClient", source: str, target: str, options: Mapping[str, Any]) -> "list[Step]":
    of, to = await place_of(client, source), await place_of(client, target)
    checksum, delete, reason = options["checksum"], options["delete"], options["delete_replaced"]
    if (of.kind, to.kind) == (Kind.LOCAL, Kind.LFN):
        if delete:
            raise click.UsageError("--delete is for local files; nothing is deleted in the catalogue but by khomas rm")
        if not of.path.is_dir():
            raise click.UsageError(f"{of.text} is no folder; khomas cp copies files")
        return await client.syncing.plan_in(of.path, to.text, read_all=checksum, replace=bool(reason))
    if (of.kind, to.kind) != (Kind.LFN, Kind.LOCAL):
        raise click.UsageError(
            f"one of the two is a folder here, the other a directory of the catalogue; {places.HELP}"
        )
    if reason or options["se"] or options["dataset"]:
        raise click.UsageError("--delete-replaced, --se and --dataset are for what goes into the catalogue")
    return await client.syncing.plan_out(of.text, to.path, read_all=checksum, delete=delete)


def _row(step: "Step", failures: "Mapping[Pair, KhomasError]") -> dict[str, Any]:
    action, message = str(step.action), ""
    if step.pair in failures:
        action, message = "failed", str(failures[step.pair])
    elif step.action == "differs":
        message = 'files never change; another name, or --delete-replaced "REASON"'
    elif step.action == "delete" and failures:
        action, message = "kept", "nothing is deleted while files are missing"
    return {
        "action": action,
        "name": step.pair.name,
        "path": str(step.pair.path),
        "size": step.size,
        "message": message,
    }
