"""Commands about transfers and the links that carry them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import Progress, limited, waiting, with_client
from khomas.client.units import duration, show_size, size

_COLUMNS = ("id", "file", "from", "to", "state", "reason", "done", "message")
_LINKS = (
    "from",
    "to",
    "waiting",
    "running",
    "streams",
    "rate",
    "stream_rate",
    "files",
    "errors",
    "success",
    "message",
)
_LIMITS = ("from", "to", "streams", "rate")


@click.group()
def transfer() -> None:
    """Copy files between StorageElements."""


@transfer.command("create")
@click.argument("names", nargs=-1, required=True)
@click.option("--to", "destination", required=True, help="StorageElement.")
@click.option("--from", "sources", multiple=True, help="Read from this StorageElement only; may be repeated.")
@click.option("--priority", type=click.IntRange(-1000, 1000), default=0, help="Every 10 more double its weight.")
@click.option("--share", default="", help="On whose account; yours if none is given.")
@click.option("--within", default="", metavar="TIME", help="Give up after this time: 2h, 3d.")
@waiting("Wait for the ends, with a progress bar.")
@in_json
def transfer_create(
    names: tuple[str, ...], within: str, wait: bool, timeout: float | None, as_json: bool, **options: Any
) -> int:
    """Want copies of files on a StorageElement."""
    if within:
        options["deadline"] = datetime.now(UTC) + duration(within, "--within")
    results = with_client(lambda client: client.storage.transfer(names, **options))
    failed = 0
    for name, result in zip(names, results, strict=True):
        if result.HasField("transfer"):
            say_wanted(result.transfer, as_json)
        else:
            failed = 1
            talk(f"{name}: {result.error.message}")
    made = [result.transfer.name for result in results if result.HasField("transfer")]
    return max(failed, waited(made, timeout, as_json)) if wait and made else failed


def say_wanted(transfer: Any, as_json: bool) -> None:
    """Tell a transfer that was made."""
    say(_row(transfer), f"{transfer.name}  {transfer.file}", as_json)


@transfer.command("watch")
@click.argument("transfers", nargs=-1, required=True)
@limited
@in_json
def transfer_watch(transfers: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait for transfers with a progress bar; fails if one of them does."""
    names = [name if name.startswith("transfers/") else f"transfers/{name}" for name in transfers]
    return waited(names, timeout, as_json)


def waited(names: Sequence[str], timeout: float | None, as_json: bool) -> int:
    """Wait for transfers and return 0 if all succeeded; in JSON each is told as it ended."""
    from khomas.api.storage.v1.transfer_pb2 import Transfer

    names = list(dict.fromkeys(names))
    total = sum(one.size_bytes for one in with_client(lambda client: client.links.read(names)))
    with Progress(f"{len(names)} transfers", total) as progress:
        seen = 0

        def look(found: Sequence[Any]) -> None:
            nonlocal seen
            moved = sum(one.size_bytes if one.state == Transfer.STATE_SUCCEEDED else one.moved_bytes for one in found)
            # What a failed attempt had moved is gone.
            progress(moved - seen)
            seen = moved

        ended = with_client(lambda client: client.links.wait(names, look, timeout=timeout))
    for one in ended if as_json else ():
        say(_row(one), "", as_json)
    lost = [one for one in ended if one.state != Transfer.STATE_SUCCEEDED]
    for one in lost:
        talk(f"{one.file}: {_word(Transfer.State.Name(one.state))}, {one.message}; khomas why {one.name}")
    return 1 if lost else 0


@transfer.command("show")
@click.argument("name")
@in_json
def transfer_show(name: str, as_json: bool) -> None:
    """Show a transfer with its attempts."""
    found = as_dict(with_client(lambda client: client.storage.get_transfer(name)))
    if as_json:
        show_one(found, as_json=True)
        return
    attempts = found.pop("attempts", [])
    show_one(found, as_json=False)
    for attempt in attempts:
        reason = attempt.get("reason", "TRANSFER_REASON_SUCCEEDED").removeprefix("TRANSFER_REASON_")
        bound = attempt.get("bottleneck", "BOTTLENECK_UNKNOWN").removeprefix("BOTTLENECK_").lower()
        click.echo(
            f"attempt {attempt['number']}: {reason} from {attempt.get('source') or 'nowhere'}, "
            f"{attempt.get('bytes', 0)} bytes in {attempt.get('elapsed', '0s')} "
            f"by {attempt.get('executor') or 'mover'}, "
            f"held up by: {bound}  {attempt.get('message', '')}".rstrip()
        )


@transfer.command("cancel")
@click.argument("transfers", nargs=-1, required=True)
@in_json
def transfer_cancel(transfers: tuple[str, ...], as_json: bool) -> None:
    """Cancel transfers; what has arrived stays."""
    answer = with_client(lambda client: client.storage.cancel_transfers(transfers))
    counts = {"cancelled": answer.cancelled, "already_final": answer.already_final}
    say(counts, f"{answer.cancelled} cancelled, {answer.already_final} untouched (final)", as_json)


@transfer.command("ls")
@click.option("--filter", "filter_text", default="", help="AIP-160: state = FAILED.")
@listing
def transfer_ls(filter_text: str, **options: Any) -> None:
    """List transfers."""
    form = format_of(options)
    found = with_client(lambda client: client.storage.transfers(filter_text))
    show_rows([_row(one) for one in found], form, _COLUMNS)


def _row(one: Any) -> dict[str, Any]:
    from khomas.api.storage.v1.transfer_pb2 import Transfer, TransferReason

    done = one.size_bytes if one.state == Transfer.STATE_SUCCEEDED else one.moved_bytes
    return {
        "id": one.name,
        "file": one.file,
        "from": one.source,
        "to": one.destination,
        "state": _word(Transfer.State.Name(one.state)),
        "reason": TransferReason.Name(one.reason).removeprefix("TRANSFER_REASON_") if one.reason else "",
        "done": f"{100 * done // one.size_bytes} %" if one.size_bytes else "",
        "message": one.message,
        "size_bytes": one.size_bytes,
        "moved_bytes": one.moved_bytes,
        "share": one.share,
        "priority": one.priority,
    }


def _word(state: str) -> str:
    return state.removeprefix("STATE_")


@click.group()
def link() -> None:
    """See and bound what moves between StorageElements."""


@link.command("ls")
@click.option("--from", "source", default="", help="Only from this StorageElement.")
@click.option("--to", "destination", default="", help="Only to this StorageElement.")
@listing
def link_ls(source: str, destination: str, **options: Any) -> None:
    """List links with what they have carried in the last day."""
    form = format_of(options)
    found = with_client(lambda client: client.links.all(source, destination))
    rows = [
        {
            "id": f"{one.source}>{one.destination}",
            "from": one.source,
            "to": one.destination,
            "waiting": one.waiting,
            "running": one.running,
            "streams": one.streams,
            "rate": f"{show_size(round(one.rate))}/s",
            "stream_rate": f"{show_size(round(one.stream_rate))}/s",
            "files": one.files,
            "errors": one.errors,
            "success": round(one.success, 3),
            "message": one.message,
        }
        for one in found.links
    ]
    show_rows(rows, form, _LINKS)


@link.command("limits")
@listing
def link_limits(**options: Any) -> None:
    """List the bounds that operators have set."""
    form = format_of(options)
    limits = with_client(lambda client: client.links.all()).limits
    show_rows([_limit_row(one) for one in limits], form, _LIMITS)


def _limit_row(one: Any) -> dict[str, Any]:
    return {
        "id": f"{one.source}>{one.destination}",
        "from": one.source or "(any)",
        "to": one.destination or "(any)",
        "streams": one.max_streams or "",
        "rate": one.max_rate or "",
    }


@link.command("limit")
@click.option("--from", "source", default="", help="StorageElement, or site:NAME; any if not given.")
@click.option("--to", "destination", default="", help="StorageElement, or site:NAME; any if not given.")
@click.option("--streams", type=click.IntRange(0), default=0, help="Most streams at once.")
@click.option("--rate", default="", help="Most bytes a second: 100 MiB.")
@in_json
def link_limit(source: str, destination: str, streams: int, rate: str, as_json: bool) -> None:
    """Bound all links between two ends together; without --streams and --rate the bound is removed."""
    bytes_ = size(rate, "--rate") if rate else 0
    limit = with_client(
        lambda client: client.links.set_limit(source, destination, max_streams=streams, max_rate=bytes_)
    )
    if as_json:
        show_one(_limit_row(limit), as_json)
    talk("bounded" if streams or bytes_ else "not bounded any more")
