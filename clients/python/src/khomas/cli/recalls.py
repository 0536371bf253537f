"""Commands about files on tape."""

from collections.abc import Sequence
from typing import Any

import click

from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import Progress, waiting, with_client
from khomas.client.units import duration

_COLUMNS = ("id", "file", "at", "state", "reason", "place", "until", "message")


class _Files(click.Group):
    """Takes what is no command of its own for a file: `khomas recall /hess/raw/run_1.fits`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args and args[0] in self.commands else ["create", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # `khomas recall --dataset raw` names no command either.
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["create", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Files)
def recall() -> None:
    """Bring files from tape to disk: `khomas recall FILE... [--wait]`, or ls, show, cancel."""


@recall.command("create")
@click.argument("names", nargs=-1)
@click.option("--dataset", default="", help="All files of a dataset.")
@click.option("--at", "storage_element", default="", help="Recall at this StorageElement.")
@click.option("--for", "lifetime", default="", metavar="TIME", help="How long they stay on disk: 2d.")
@waiting("Wait until they are there, with a progress bar.")
@in_json
def recall_create(
    names: tuple[str, ...], lifetime: str, wait: bool, timeout: float | None, as_json: bool, **options: Any
) -> int:
    """Want files on disk."""
    if lifetime:
        options["lifetime"] = duration(lifetime, "--for")
    results = with_client(lambda client: client.recalls.create(names, **options))
    for result in results:
        if result.HasField("error"):
            talk(result.error.message)
    made = [result.recall for result in results if result.HasField("recall")]
    if wait and made:
        made = _waited(made, timeout)
    if as_json or not wait:
        for one in made:
            say(as_dict(one), f"{one.name}  {one.file}", as_json)
    return int(len(made) < len(results) or any(_is_lost(one) for one in made if wait))


def _waited(made: Sequence[Any], timeout: float | None) -> list[Any]:
    sizes = {one.name: one.size_bytes for one in made}
    with Progress(f"{len(sizes)} files from tape", sum(sizes.values())) as progress:
        seen = 0

        def look(found: Sequence[Any]) -> None:
            nonlocal seen
            there = sum(one.size_bytes for one in found if _is_there(one))
            progress(there - seen)
            seen = there

        ended = with_client(lambda client: client.recalls.wait(list(sizes), timeout=timeout, on_look=look))
    for one in ended:
        if _is_lost(one):
            talk(f"{one.file}: {_state(one)}, {one.message}; khomas why {one.name}")
    return list(ended)


@recall.command("ls")
@click.option("--filter", "filter_text", default="", help="AIP-160: state = REQUESTED.")
@listing
def recall_ls(filter_text: str, **options: Any) -> None:
    """List recalls, the newest first."""
    form = format_of(options)
    found = with_client(lambda client: client.recalls.all(filter_text))
    show_rows([_row(one) for one in found], form, _COLUMNS)


@recall.command("show")
@click.argument("name")
@in_json
def recall_show(name: str, as_json: bool) -> None:
    """Show a recall."""
    show_one(as_dict(with_client(lambda client: client.recalls.get(name))), as_json=as_json)


@recall.command("cancel")
@click.argument("names", nargs=-1, required=True)
@in_json
def recall_cancel(names: tuple[str, ...], as_json: bool) -> None:
    """Want files on disk no more."""
    answer = with_client(lambda client: client.recalls.cancel(names))
    counts = {"cancelled": answer.cancelled, "already_final": answer.already_final}
    say(counts, f"{answer.cancelled} cancelled, {answer.already_final} untouched (final)", as_json)


def _row(one: Any) -> dict[str, Any]:
    from khomas.api.storage.v1.recall_pb2 import RecallReason

    place = f"{'~' if one.position_estimated else ''}{one.queue_position}" if one.queue_position else ""
    return {
        "id": one.name,
        "file": one.file,
        "at": one.storage_element,
        "state": _state(one),
        "reason": RecallReason.Name(one.reason).removeprefix("RECALL_REASON_") if one.reason else "",
        "place": place,
        "until": one.pin_time.ToJsonString() if one.HasField("pin_time") else "",
        "message": one.message,
        "request": one.request,
        "size_bytes": one.size_bytes,
    }


def _state(one: Any) -> str:
    from khomas.api.storage.v1.recall_pb2 import Recall

    return Recall.State.Name(one.state).removeprefix("STATE_")


def _is_there(one: Any) -> bool:
    from khomas.api.storage.v1.recall_pb2 import Recall

    return one.state in (Recall.STATE_ONLINE, Recall.STATE_RELEASED)


def _is_lost(one: Any) -> bool:
    return not _is_there(one)
