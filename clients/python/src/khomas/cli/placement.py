"""Commands about what lies on a StorageElement: update, drain, decommission, why, rm-replicas."""

from typing import Any

import click

from khomas.cli.explanations import show_explanation
from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, in_json, show_one, talk
from khomas.cli.running import Ticker, waiting, with_client
from khomas.client.units import size


@click.command("drain")
@click.argument("storage_element")
@click.option("--cancel", is_flag=True, help="Let it take files again.")
@click.option("--show", "only_show", is_flag=True, help="Only say how far it is.")
@waiting("Wait until it is empty.")
@in_json
def se_drain(
    storage_element: str, cancel: bool, only_show: bool, wait: bool, timeout: float | None, as_json: bool
) -> int:
    """Empty a StorageElement: last copies and those of rules go elsewhere first."""
    if cancel:
        found = with_client(lambda client: client.placement.cancel_drain(storage_element))
    elif only_show:
        found = with_client(lambda client: client.placement.drained(storage_element))
    else:
        found = with_client(lambda client: client.placement.drain(storage_element))
    return _left(found, wait and not cancel, timeout, as_json)


@click.command("decommission")
@click.argument("storage_element")
@waiting("Wait until it is forgotten.")
@in_json
def se_decommission(storage_element: str, wait: bool, timeout: float | None, as_json: bool) -> int:
    """Empty a StorageElement, then forget it for good."""
    found = with_client(lambda client: client.placement.drain(storage_element, decommission=True))
    return _left(found, wait, timeout, as_json)


def _left(drain: Any, wait: bool, timeout: float | None, as_json: bool) -> int:
    """Show a drain, at its end if that is waited for; 3 if somebody has taken it back meanwhile."""
    from khomas.client.errors import CANCELLED

    if wait:
        ticker = Ticker()
        drain = with_client(
            lambda client: client.placement.wait_for_drain(
                drain.name, timeout=timeout, on_look=lambda one: ticker(f"{one.files_left} files left  {one.message}")
            )
        )
        ticker.done()
    row = _drain(drain)
    show_one(row, as_json)
    return CANCELLED if wait and row["state"] == "CANCELLED" else 0


@click.command("why")
@click.argument("storage_element")
@in_json
def se_why(storage_element: str, as_json: bool) -> None:
    """Say why a StorageElement that is drained is not empty yet."""
    show_explanation(with_client(lambda client: client.placement.explain_drain(storage_element)), as_json)


@click.command("rm-replicas")
@click.argument("storage_element")
@click.argument("files", nargs=-1, required=True)
@in_json
def se_rm_replicas(storage_element: str, files: tuple[str, ...], as_json: bool) -> int:
    """Delete the copies of files on a StorageElement, but for those that are needed."""
    results = with_client(lambda client: client.placement.delete_replicas(storage_element, files))
    kept = [(file, one) for file, one in zip(files, results, strict=True) if one.code]
    for file, one in kept:
        talk(f"{file}: {one.message}")
    counts = {"deleting": len(files) - len(kept), "kept": {file: one.message for file, one in kept}}
    say(counts, f"{len(files) - len(kept)} are going to be deleted, {len(kept)} stay", as_json)
    return int(bool(kept))


@click.command("update")
@click.argument("storage_element")
@click.option(
    "--label", "labels", multiple=True, metavar="NAME=VALUE", help="What rules can ask for; NAME= removes it."
)
@click.option("--weight", type=click.IntRange(0, 1000), help="How much rules like it against others.")
@click.option("--high-watermark", type=click.IntRange(0, 100), help="Clean caches when fuller than this percentage.")
@click.option("--low-watermark", type=click.IntRange(0, 100), help="Until it is as full as this.")
@click.option("--capacity", default=None, metavar="SIZE", help="What may be filled: 20TB.")
@click.option("--site", default=None)
@click.option("--description", default=None)
@in_json
def se_update(storage_element: str, labels: tuple[str, ...], capacity: str | None, as_json: bool, **some: Any) -> None:
    """Change a StorageElement: labels, weight, watermarks, capacity."""
    changes = {key: value for key, value in some.items() if value is not None}
    if capacity is not None:
        changes["capacity_bytes"] = size(capacity, "--capacity")
    if labels:
        changes["labels"] = dict(_pair(label) for label in labels)
    changed = with_client(lambda client: client.placement.update_element(storage_element, **changes))
    names = ("site", "weight", "high_watermark", "low_watermark", "capacity_bytes", "description")
    row = {"id": changed.name.removeprefix("storageElements/"), **{name: getattr(changed, name) for name in names}}
    show_one({**row, "labels": dict(changed.labels)}, as_json)


def _pair(label: str) -> tuple[str, str]:
    name, equals, value = label.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{label} is not NAME=VALUE", param_hint="--label")
    return name, value


def _drain(one: Any) -> dict[str, Any]:
    from khomas.api.storage.v1.drain_pb2 import Drain

    row = {**as_dict(one), "state": Drain.State.Name(one.state).removeprefix("STATE_")}
    return {"files_left": one.files_left, "bytes_left": one.bytes_left, **row}


SE_COMMANDS = (se_update, se_drain, se_decommission, se_why, se_rm_replicas)
