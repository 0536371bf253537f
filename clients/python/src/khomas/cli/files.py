"""Commands about files: put, get, find, dir, rm, undelete."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.carrying import get_files, put_files, resumable, say_came, say_put, sizes_below
from khomas.cli.jobs import pairs
from khomas.cli.output import answer as say
from khomas.cli.output import format_of, in_json, listing, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient
    from khomas.client.pairs import Pair

_COLUMNS = ("name", "size", "adler32", "replicas", "created")
_OF_ONE = ("name", "size", "adler32", "states", "created")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("name")
@click.option("--se", multiple=True, help="StorageElement; the first that has room is taken.")
@click.option("--dataset", multiple=True, help="Dataset to join.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata.")
@click.option("--skip-same", is_flag=True, help="Leave out what is in the catalogue with the same content.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@in_json
def put(
    paths: tuple[Path, ...],
    name: str,
    se: tuple[str, ...],
    dataset: tuple[str, ...],
    meta: tuple[str, ...],
    skip_same: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Bring files and folders in. With several, or with a / at its end, NAME is a directory."""
    from khomas.client.pairs import below
    from khomas.client.units import show_size

    found: list[Pair] = []
    for path in paths:
        inside = len(paths) > 1 or name.endswith("/")
        found += below(path, f"{name.rstrip('/')}/{path.name}" if inside else name)
    values = pairs(meta, "--meta")
    with resumable("The same command with --skip-same goes on."):
        done = with_client(
            lambda client: put_files(
                client, found, skip_same=skip_same, storage_elements=se, datasets=dataset, metadata=values
            )
        )
    for one in done:
        text = one.name if quiet else f"{one.name}  {show_size(one.size_bytes)}  {one.checksums.adler32}"
        say_put(one, text, as_json and not quiet)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--to", "target", type=click.Path(path_type=Path), default=Path(), help="Folder; default here.")
@click.option("--dataset", "is_dataset", is_flag=True, help="NAMES are datasets.")
@click.option("--merged", is_flag=True, help="Of an array: the outputs of its mergers.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--skip-same", is_flag=True, help="Leave out what is here with the same content.")
@click.option("--tree", is_flag=True, help="Keep the directories of the LFNs.")
@in_json
def get(
    names: tuple[str, ...],
    target: Path,
    is_dataset: bool,
    merged: bool,
    overwrite: bool,
    skip_same: bool,
    tree: bool,
    as_json: bool,
) -> None:
    """Fetch files by LFN, all files below an LFN directory, of a dataset, or the outputs of a job."""
    with resumable("The same command with --skip-same goes on."):
        with_client(lambda client: _get(client, names, target, is_dataset, merged, overwrite, skip_same, tree, as_json))


async def _get(
    client: "AsyncClient",
    names: tuple[str, ...],
    target: Path,
    is_dataset: bool,
    merged: bool,
    overwrite: bool,
    skip_same: bool,
    tree: bool,
    as_json: bool,
) -> None:
    from khomas.client.pairs import Pair

    sizes: dict[str, int] = {}
    for name in names:
        sizes |= await _sizes(client, name, target, is_dataset=is_dataset, merged=merged, as_json=as_json)
    chosen = [Pair(target / (lfn.lstrip("/") if tree else Path(lfn).name), lfn) for lfn in sizes]
    if len({pair.path for pair in chosen}) < len(chosen):
        raise click.UsageError("two files have the same last segment; add --tree")
    for one in await get_files(client, chosen, sizes, overwrite=overwrite, skip_same=skip_same):
        say_came(one.name, one.path, as_json)


async def _sizes(
    client: "AsyncClient", name: str, target: Path, *, is_dataset: bool, merged: bool, as_json: bool
) -> dict[str, int]:
    if is_dataset:
        return {one: known.size async for one, known in client.files.comparing.below(dataset=name)}
    if not name.startswith("/"):
        return await _outputs(client, name, target, merged, as_json)
    return await sizes_below(client, name.rstrip("/"))


async def _outputs(client: "AsyncClient", name: str, target: Path, merged: bool, as_json: bool) -> dict[str, int]:
    from khomas.client.jobs import job_name

    jobs = [name]
    if merged:
        uid = job_name(name).removeprefix("jobs/")
        jobs = [job.name for job in await client.jobs.find(full=True) if job.merges == f"jobs/{uid}"]
    sizes = {}
    for job in jobs:
        for output in await client.jobs.outputs(job):
            if output.name:
                sizes[output.name] = output.size_bytes
            else:
                path = _keep(target, output.path, await client.jobs.read_sandbox(job, output.path))
                say_came("", path, as_json)
    return sizes


def _keep(target: Path, name: str, content: bytes) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    path = target / Path(name).name
    path.write_bytes(content)
    return path


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--for", "lifetime", default="1h", metavar="TIME", help="How long they work: 10min, 1h; at most some days."
)
@listing
def grant(names: tuple[str, ...], lifetime: str, **options: Any) -> None:
    """Print addresses by which whoever has them reads files for a while: in a browser, with curl or TOPCAT."""
    from khomas.client.units import duration

    form = format_of(options)
    life = duration(lifetime, "--for")
    granted = with_client(lambda client: client.files.addresses(names, life))
    rows = [
        {"name": name, "url": one.url, "expires": one.expire_time.ToJsonString(), "se": one.storage_element}
        for name, one in zip(names, granted, strict=True)
    ]
    show_rows(rows, form, ("name", "url", "expires"), "url")


@click.command()
@click.argument("directory", default="/")
@click.option("--where", "filter_text", default="", help="AIP-160: metadata.zenith > 40.")
@click.option("--dataset", default="", help="Only members of this dataset.")
@click.option("--as-of", type=click.DateTime(), help="With --dataset: its content at this moment, UTC.")
@click.option("--sort", "order_by", default="", help="name, size_bytes, create_time or metadata.<key>, with ' desc'.")
@listing
def find(directory: str, filter_text: str, dataset: str, as_of: datetime | None, order_by: str, **options: Any) -> None:
    """Search files by path and metadata; with the name of a file, show that one and the state of its copies."""
    if as_of is not None and not dataset:
        raise click.UsageError("--as-of tells the content of a dataset at that moment; name it with --dataset")
    form = format_of(options)

    async def work(client: "AsyncClient") -> list[Any]:
        found = client.files.find(
            "" if directory == "/" else directory.rstrip("/"),
            filter_text=filter_text,
            dataset=dataset,
            order_by=order_by,
            as_of=as_of,
        )
        rows = [_row(one) async for one in found]
        if rows or directory == "/" or filter_text or dataset:
            return rows
        return [_row(one) for one in await client.files.known([directory])]

    rows = with_client(work)
    alone = len(rows) == 1 and rows[0]["name"] == directory
    show_rows(rows, form, _OF_ONE if alone else _COLUMNS, "name")


def _state(copy: Any) -> str:
    return str(type(copy).State.Name(copy.state)).removeprefix("STATE_")


def _row(one: Any) -> dict[str, Any]:
    from khomas.client.files import plain_value

    return {
        "name": one.name,
        "uid": one.uid,
        "size": one.size_bytes,
        "adler32": one.checksums.adler32,
        "sha256": one.checksums.sha256,
        "content_digest": one.checksums.content_digest,
        "replicas": [copy.storage_element for copy in one.replicas],
        "states": [f"{copy.storage_element}:{_state(copy)}" for copy in one.replicas],
        "paths": [f"{copy.storage_element}:{copy.path}" for copy in one.replicas],
        "metadata": {key: plain_value(value) for key, value in sorted(one.metadata.items())},
        "parents": list(one.parents),
        "owner": one.owner,
        "origin": one.origin,
        "created": one.create_time.ToJsonString(),
    }


@click.command("dir")
@click.argument("directory", default="/")
@listing
def dir(directory: str, **options: Any) -> None:  # noqa: A001  the command's name
    """List a directory."""
    form = format_of(options)
    entries = with_client(lambda client: client.files.list_directory(directory))
    rows = [
        {"name": one.name + ("/" if one.directory else ""), "size": "" if one.directory else one.file.size_bytes}
        for one in entries
    ]
    show_rows(rows, form, ("name", "size"), "name")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why; kept with the tombstone.")
@click.option("--force", is_flag=True, help="Also files that others were made from.")
@in_json
def rm(names: tuple[str, ...], reason: str, force: bool, as_json: bool) -> None:
    """Delete files; `khomas undelete` takes it back inside the undo window."""
    gone = with_client(lambda client: client.files.delete(names, reason, force=force))
    for one in gone:
        until = one.deletion.purge_time.ToJsonString()
        say({"name": one.name, "uid": one.uid, "undo_until": until}, one.name, as_json)
    if gone:
        talk(f"can be undone until {gone[0].deletion.purge_time.ToJsonString()}")


@click.command()
@click.argument("names", nargs=-1, required=True)
@in_json
def undelete(names: tuple[str, ...], as_json: bool) -> None:
    """Take deletions back."""
    for one in with_client(lambda client: client.files.undelete(names)):
        say({"name": one.name, "uid": one.uid}, one.name, as_json)
