"""Commands about releases."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.jobs import pairs, read_document
from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import Ticker, limited, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient


@click.group()
def release() -> None:
    """Make, publish and export releases."""


def _state(one: Any) -> str:
    from khomas.api.archive.v1.release_pb2 import Release

    return Release.State.Name(one.state).removeprefix("STATE_")


def _row(one: Any) -> dict[str, Any]:
    return {
        "id": one.name.removeprefix("releases/"),
        "state": _state(one),
        "title": one.title,
        "dataset": one.dataset.removeprefix("datasets/"),
        "products": len(one.products),
        "records": one.record_count,
        "problems": list(one.problems),
        "created": one.create_time.ToJsonString(),
    }


@release.command("create")
@click.argument("name", metavar="COLLECTION/VERSION")
@click.argument("dataset")
@click.option("--mapping", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML.")
@click.option("--authority", required=True, help="Of the publisher identifiers: ivo://AUTHORITY/…")
@click.option("--title", default="")
@click.option("--description", default="")
@click.option("--terms", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with terms of use.")
@click.option("--dry-run", is_flag=True, help="Map and validate, make nothing.")
@limited
@in_json
def release_create(name: str, dataset: str, dry_run: bool, timeout: float | None, as_json: bool, **options: Any) -> int:
    """Make a release of a dataset and wait until it is prepared."""
    from google.protobuf.json_format import ParseDict, ParseError

    from khomas.api.archive.v1.release_pb2 import Mapping, Release
    from khomas.client.specs import dataset_name

    try:
        mapping = ParseDict(read_document(options["mapping"]), Mapping())
    except ParseError as error:
        raise click.UsageError(f"{options['mapping']}: {error}") from error
    terms = options["terms"].read_text(errors="replace") if options["terms"] else ""
    wanted = Release(
        name=f"releases/{name.removeprefix('releases/')}",
        title=options["title"],
        description=options["description"],
        dataset=dataset_name(dataset),
        mapping=mapping,
        authority=options["authority"],
        terms=terms,
    )
    found = with_client(lambda client: _create(client, wanted, dry_run, timeout))
    show_one(as_dict(found) if as_json else _row(found), as_json)
    return 1 if _state(found) == "FAILED" or (dry_run and found.problems) else 0


async def _create(client: "AsyncClient", wanted: Any, dry_run: bool, timeout: float | None) -> Any:
    made = await client.archive.create(wanted, validate_only=dry_run)
    if dry_run:
        return made
    ticker = Ticker()
    found = await client.archive.wait(
        wanted.name, timeout=timeout, on_look=lambda one: ticker(f"{one.name}  {_state(one)}")
    )
    ticker.done()
    return found


@release.command("ls")
@listing
def release_ls(**options: Any) -> None:
    """List releases."""
    form = format_of(options)
    found = with_client(lambda client: client.archive.releases())
    show_rows([_row(one) for one in found], form, ("id", "state", "title", "dataset", "records", "created"))


@release.command("show")
@click.argument("name")
@in_json
def release_show(name: str, as_json: bool) -> None:
    """Show a release with its products."""
    found = with_client(lambda client: client.archive.release(name))
    if as_json:
        show_one(as_dict(found), as_json=True)
        return
    show_one(_row(found), as_json=False)
    for product in found.products:
        click.echo(f"  {product.file}  {product.size_bytes} bytes  {product.publisher_did}")


@release.command("publish")
@click.argument("name")
@in_json
def release_publish(name: str, as_json: bool) -> None:
    """Offer a release."""
    _say(with_client(lambda client: client.archive.publish(name)), as_json)


@release.command("withdraw")
@click.argument("name")
@click.option("--reason", required=True)
@in_json
def release_withdraw(name: str, reason: str, as_json: bool) -> None:
    """Take a release back; its record and files stay."""
    _say(with_client(lambda client: client.archive.withdraw(name, reason)), as_json)


def _say(release: Any, as_json: bool) -> None:
    row = _row(release)
    say(row, f"{row['id']}  {row['state']}", as_json)


@release.command("export")
@click.argument("name")
@click.argument("exporter")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="Option of the exporter.")
@in_json
def release_export(name: str, exporter: str, option: tuple[str, ...], as_json: bool) -> None:
    """Run an exporter over a release: obscore, gadf-index."""
    options: dict[str, Any] = dict(pairs(option, "--option"))
    found = with_client(lambda client: client.archive.export(name, exporter, options))
    if as_json:
        show_one(as_dict(found), as_json)
        return
    for file in found.files:
        click.echo(file)


@release.command("records")
@click.argument("name")
@listing
def release_records(name: str, **options: Any) -> None:
    """List the ObsCore records of a release."""
    form = format_of(options)

    async def work(client: "AsyncClient") -> list[dict[str, Any]]:
        columns: list[str] = []
        rows = []
        async for record in client.archive.records(name):
            columns = columns or [field.name for field in record.DESCRIPTOR.fields]
            known = as_dict(record)
            rows.append({column: known.get(column) for column in columns})
        return rows

    rows = with_client(work)
    if not rows:
        talk("no records")
    columns = ("obs_id", "dataproduct_type", "target_name", "s_ra", "s_dec", "t_min", "t_max", "access_estsize")
    show_rows(rows, form, columns, "obs_publisher_did")
