"""Commands about adoption and StorageElements."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.integrity import SE_COMMANDS
from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.placement import SE_COMMANDS as PLACEMENT_COMMANDS
from khomas.cli.running import Ticker, limited, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient


@click.group()
def adopt() -> None:
    """Take an existing tree into the catalogue, where it lies."""


@adopt.command("start")
@click.argument("storage_element")
@click.argument("destination")
@click.option("--path", default="", help="Top of the tree on the StorageElement.")
@click.option("--include", multiple=True, help="Shell pattern over the relative path.")
@click.option("--pattern", multiple=True, help="Regular expression with named groups: obs_id_(?P<run>\\d+).")
@click.option("--header", multiple=True, metavar="CARD[=key[:unit]]", help="FITS card to keep as metadata.")
@click.option("--dataset", default="", help="Dataset that all files join.")
@click.option("--declare", is_flag=True, help="Declare missing metadata keys.")
@click.option("--dry-run", is_flag=True, help="Say what would happen.")
@limited
@in_json
def adopt_start(
    storage_element: str, destination: str, dry_run: bool, timeout: float | None, as_json: bool, **options: Any
) -> int:
    """Adopt the tree on a StorageElement under the LFN directory DESTINATION, and wait for the end."""
    from khomas.api.catalog.v1.adoption_pb2 import Adoption
    from khomas.client.specs import dataset_name

    wanted = Adoption(
        storage_element=storage_element,
        destination=destination.rstrip("/"),
        path=options["path"],
        include=options["include"],
        path_patterns=options["pattern"],
        dataset=dataset_name(options["dataset"]),
        declare_keys=options["declare"],
    )
    for word in options["header"]:
        card, _, rest = word.partition("=")
        key, _, unit = rest.partition(":")
        wanted.headers.add(card=card, key=key, unit=unit)
    found = with_client(lambda client: _adopt(client, wanted, dry_run, timeout))
    show_one(as_dict(found) if as_json else _adoption_row(found), as_json)
    failed = not dry_run and found.state != Adoption.STATE_SUCCEEDED
    if failed:
        talk(f"khomas why {found.name} says what would help")
    return int(failed)


async def _adopt(client: "AsyncClient", wanted: Any, dry_run: bool, timeout: float | None) -> Any:
    from khomas.api.catalog.v1.adoption_pb2 import Adoption

    started = await client.files.adopt(wanted, validate_only=dry_run)
    if dry_run:
        return started
    ticker = Ticker()
    found = await client.catalog.until(
        lambda: client.catalog.adoption(started.name),
        lambda one: one.state != Adoption.STATE_RUNNING,
        timeout=timeout,
        on_look=lambda one: ticker(f"adopted {one.adopted_files} files, {one.adopted_bytes // 1_000_000} MB"),
    )
    ticker.done()
    return found


def _adoption_row(one: Any) -> dict[str, Any]:
    from khomas.api.catalog.v1.adoption_pb2 import Adoption

    return {
        "id": one.name.removeprefix("adoptions/"),
        "state": Adoption.State.Name(one.state).removeprefix("STATE_"),
        "storage_element": one.storage_element,
        "destination": one.destination,
        "files": one.adopted_files,
        "bytes": one.adopted_bytes,
        "known": one.known_files,
        "problems": list(one.problems),
    }


@adopt.command("ls")
@listing
def adopt_ls(**options: Any) -> None:
    """List adoptions."""
    form = format_of(options)
    found = with_client(lambda client: client.catalog.adoptions())
    show_rows([_adoption_row(one) for one in found], form, ("id", "state", "storage_element", "destination", "files"))


@adopt.command("undo")
@click.argument("name")
@in_json
def adopt_undo(name: str, as_json: bool) -> None:
    """Take the files of an adoption out of the catalogue again; the bytes stay."""
    full = name if name.startswith("adoptions/") else f"adoptions/{name}"
    found = with_client(lambda client: client.catalog.undo_adoption(full))
    show_one(as_dict(found) if as_json else _adoption_row(found), as_json)


@click.group()
def se() -> None:
    """List, make and look after StorageElements."""


for _command in (*SE_COMMANDS, *PLACEMENT_COMMANDS):
    se.add_command(_command)


@se.command("create")
@click.argument("name")
@click.argument("address")
@click.option("--protocol", default="posix", help="posix, davs, …")
@click.option("--credential", default="", help="Name of a credential in the settings of the storage.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="What the protocol takes besides.")
@click.option("--site", default="")
@click.option("--media", type=click.Choice(["disk", "tape"]), default="disk", help="Files on tape are recalled first.")
@click.option("--read-only", is_flag=True, help="For trees that are adopted where they lie.")
@click.option("--description", default="")
@in_json
def se_create(
    name: str,
    address: str,
    protocol: str,
    credential: str,
    options: tuple[str, ...],
    site: str,
    media: str,
    read_only: bool,
    description: str,
    as_json: bool,
) -> None:
    """Make a StorageElement known; ADDRESS is its root, a folder for the protocol posix."""
    from khomas.api.storage.v1.storage_element_pb2 import AccessPoint, StorageElement

    place = str(Path(address).resolve()) if protocol == "posix" else address
    wanted = StorageElement(
        name=f"storageElements/{name}",
        description=description,
        site=site,
        media=StorageElement.Media.Value(f"MEDIA_{media.upper()}"),
        access_points=[AccessPoint(protocol=protocol, address=place, credential=credential, options=_pairs(options))],
        read_only=read_only,
    )
    made = with_client(lambda client: client.storage.create_element(wanted))
    say(as_dict(made), made.name.removeprefix("storageElements/"), as_json)


def _pairs(options: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{option} is not NAME=VALUE", param_hint="--option")
        pairs[name] = value
    return pairs
