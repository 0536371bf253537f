"""Commands about metadata and datasets."""

from typing import Any

import click

from khomas.cli.jobs import pairs
from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one
from khomas.cli.output import show as show_rows
from khomas.cli.running import with_client


@click.group()
def meta() -> None:
    """Declare metadata keys and set values."""


@meta.command("keys")
@listing
def keys(**options: Any) -> None:
    """List the declared keys."""
    form = format_of(options)
    rows = [_key(one) for one in with_client(lambda client: client.catalog.keys())]
    show_rows(rows, form, ("key", "type", "unit", "description"), "key")


def _key(one: Any) -> dict[str, Any]:
    from khomas.api.catalog.v1.dataset_pb2 import MetadataKey

    return {
        "key": one.name.removeprefix("metadataKeys/"),
        "type": MetadataKey.Type.Name(one.type).removeprefix("TYPE_").lower(),
        "unit": one.unit,
        "description": one.description,
    }


@meta.command("declare")
@click.argument("words", nargs=-1, required=True, metavar="KEY=TYPE[:UNIT]...")
@in_json
def declare(words: tuple[str, ...], as_json: bool) -> None:
    """Declare keys: zenith=number:deg target=text run=integer."""
    from khomas.api.catalog.v1.dataset_pb2 import MetadataKey

    wanted = []
    for key, value in pairs(words, "declare").items():
        type_, _, unit = value.partition(":")
        known = [name.removeprefix("TYPE_").lower() for name in MetadataKey.Type.keys()[1:]]
        if type_.lower() not in known:
            raise click.UsageError(f"{key}: the type is one of {', '.join(known)}, not {type_}")
        number = MetadataKey.Type.Value(f"TYPE_{type_.upper()}")
        wanted.append(MetadataKey(name=f"metadataKeys/{key}", type=number, unit=unit))
    for one in with_client(lambda client: client.catalog.declare(wanted)):
        row = _key(one)
        say(row, row["key"], as_json)


@meta.command("set")
@click.argument("words", nargs=-1, required=True, metavar="LFN... KEY=VALUE...")
@click.option("--remove", multiple=True, help="Key to remove.")
@in_json
def set_(words: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """Set metadata of files."""
    names = [word for word in words if word.startswith("/")]
    values = pairs(tuple(word for word in words if not word.startswith("/")), "set")
    changed = with_client(lambda client: client.files.set_metadata(names, values, remove))
    say({"changed": changed}, f"{changed} changed", as_json)


@click.group()
def dataset() -> None:
    """Make, fill, close and list datasets."""


def _row(one: Any) -> dict[str, Any]:
    from khomas.api.catalog.v1.dataset_pb2 import Dataset

    return {
        "name": one.name.removeprefix("datasets/"),
        "state": Dataset.State.Name(one.state).removeprefix("STATE_"),
        "files": one.file_count,
        "size": one.size_bytes,
        "description": one.description,
        "created": one.create_time.ToJsonString(),
        "owner": one.owner,
    }


@dataset.command("ls")
@click.option("--filter", "filter_text", default="")
@listing
def dataset_ls(filter_text: str, **options: Any) -> None:
    """List datasets."""
    form = format_of(options)
    found = with_client(lambda client: client.catalog.datasets(filter_text))
    show_rows([_row(one) for one in found], form, ("name", "state", "files", "size", "created"), "name")


@dataset.command("show")
@click.argument("name")
@in_json
def dataset_show(name: str, as_json: bool) -> None:
    """Show a dataset."""
    found = with_client(lambda client: client.catalog.dataset(name))
    show_one(as_dict(found) if as_json else _row(found), as_json)


@dataset.command("create")
@click.argument("name")
@click.argument("files", nargs=-1)
@click.option("--description", default="")
@in_json
def dataset_create(name: str, files: tuple[str, ...], description: str, as_json: bool) -> None:
    """Make a dataset."""
    found = with_client(lambda client: client.catalog.create_dataset(name, files, description))
    say(as_dict(found), found.name.removeprefix("datasets/"), as_json)


@dataset.command("add")
@click.argument("name")
@click.argument("files", nargs=-1)
@click.option("--where", "filter_text", default="", help="All files that match this filter.")
@click.option("--from", "source", default="", help="Only members of this dataset.")
@in_json
def dataset_add(name: str, files: tuple[str, ...], filter_text: str, source: str, as_json: bool) -> None:
    """Add files to a dataset."""

    async def work(client: Any) -> Any:
        names = list(files)
        if filter_text or source:
            names += [one.name async for one in client.files.find(filter_text=filter_text, dataset=source)]
        return await client.catalog.change_dataset(name, add=names)

    found = with_client(work)
    say(as_dict(found), f"{found.file_count} files", as_json)


@dataset.command("remove")
@click.argument("name")
@click.argument("files", nargs=-1, required=True)
@in_json
def dataset_remove(name: str, files: tuple[str, ...], as_json: bool) -> None:
    """Remove files from a dataset; the files stay."""
    found = with_client(lambda client: client.catalog.change_dataset(name, remove=files))
    say(as_dict(found), f"{found.file_count} files", as_json)


@dataset.command("close")
@click.argument("name")
@in_json
def dataset_close(name: str, as_json: bool) -> None:
    """Close a dataset: its content never changes again."""
    found = with_client(lambda client: client.catalog.close_dataset(name))
    if as_json:
        show_one(as_dict(found), as_json)
