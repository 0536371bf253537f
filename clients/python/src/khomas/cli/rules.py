"""Commands about rules, policies and the emptying of StorageElements."""

from collections.abc import Callable
from typing import Any

import click

from khomas.cli.output import as_dict, format_of, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import with_client
from khomas.client.units import duration, show_duration, show_size, size

_COLUMNS = ("id", "what", "expression", "copies", "state", "files", "ok", "on_way", "stuck", "to_come", "until")
_COPIES = ("file", "at", "state", "reason", "message")
_ELEMENTS = ("at", "there", "to_copy", "bytes", "free", "MB/s")
_POLICIES = ("id", "datasets", "filter", "expression", "copies", "rules", "suspended", "owner")


def _wanted(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a rule."""
    for option in (
        click.option("--copies", type=click.IntRange(1, 20), default=1, show_default=True),
        click.option("--lifetime", default="", metavar="TIME", help="End after this time: 30d. For ever without it."),
        click.option("--priority", type=click.IntRange(-1000, 1000), default=0, help="Of its transfers."),
        click.option("--together", is_flag=True, help="All files on the same StorageElements."),
        click.option("--share", default="", help="On whose account its transfers go; yours if none is given."),
        click.option("--description", default="", help="Why there is this rule."),
    ):
        command = option(command)
    return command


def _files(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--dataset", default="", help="The files of a dataset."),
        click.option("--dir", "directory", default="", help="The files below a directory."),
        click.option("--filter", "filter", default="", help="With --dir, those that match: metadata.zenith > 40."),
        click.argument("expression"),
    ):
        command = option(command)
    return command


@click.group()
def rule() -> None:
    """Want copies: EXPRESSION is like "media=DISK & (site=hd | tier=1) - scratch*"."""


@rule.command("create")
@_files
@_wanted
@click.option("--wait", is_flag=True, help="Wait until all copies are there, or some cannot be made.")
@click.option("--json", "as_json", is_flag=True)
def rule_create(expression: str, wait: bool, as_json: bool, **options: Any) -> int:
    """Want copies of a dataset or of a directory on StorageElements."""
    made = with_client(lambda client: client.rules.create(expression, **_plain(options)))
    if wait:
        made = with_client(lambda client: client.rules.wait(made.name))
    if as_json:
        show_one(_row(made), as_json=True)
    else:
        click.echo(_id(made.name))
    if wait and _state(made) != "OK":
        talk(f"{_state(made)}: {made.message}; khomas rule why {_id(made.name)}")
    return int(wait and _state(made) != "OK")


@rule.command("preview")
@_files
@_wanted
@listing
def rule_preview(expression: str, **options: Any) -> None:
    """Say what a rule would do, without making it."""
    form = format_of(options)
    found = with_client(lambda client: client.rules.preview(expression, **_plain(options)))
    rows = [
        {
            "at": one.storage_element,
            "there": one.files_there,
            "to_copy": one.files_to_copy,
            "bytes": one.bytes_to_copy if form.json else show_size(one.bytes_to_copy),
            "free": one.free_bytes if form.json else show_size(one.free_bytes) if one.free_bytes >= 0 else "?",
            "MB/s": round(one.rate / 1e6, 1),
        }
        for one in found.elements
    ]
    show_rows(rows, form, _ELEMENTS, "at")
    time = "not known: nothing was measured yet"
    if found.HasField("time_to_copy"):
        time = f"about {show_duration(found.time_to_copy.seconds)}"
    talk(f"{found.files} files, {show_size(found.bytes)}; to copy {show_size(found.bytes_to_copy)}, time {time}")
    if found.stuck_copies:
        talk(f"{found.stuck_copies} copies could not be made: {_reason(found.reason)}")


@rule.command("ls")
@click.option("--filter", "filter_text", default="", help='AIP-160: state = STUCK AND dataset = "datasets/crab*".')
@listing
def rule_ls(filter_text: str, **options: Any) -> None:
    """List rules."""
    form = format_of(options)
    show_rows([_row(one) for one in with_client(lambda client: client.rules.all(filter_text))], form, _COLUMNS)


@rule.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def rule_show(name: str, as_json: bool) -> None:
    """Show a rule."""
    show_one(_row(with_client(lambda client: client.rules.get(name))), as_json)


@rule.command("copies")
@click.argument("name")
@click.option("--filter", "filter_text", default="", help="AIP-160: state = STUCK.")
@listing
def rule_copies(name: str, filter_text: str, **options: Any) -> None:
    """List the copies that a rule wants, file by file."""
    form = format_of(options)
    rows = [
        {
            "file": one.file,
            "at": one.storage_element,
            "state": _state(one),
            "reason": _reason(one.reason),
            "message": one.message,
            "transfer": one.transfer,
            "size_bytes": one.size_bytes,
        }
        for one in with_client(lambda client: client.rules.copies(name, filter_text))
    ]
    show_rows(rows, form, _COPIES, "file")


@rule.command("update")
@click.argument("name")
@click.option("--copies", type=click.IntRange(1, 20))
@click.option("--priority", type=click.IntRange(-1000, 1000))
@click.option("--lifetime", default=None, metavar="TIME", help="From now on.")
@click.option("--share", default=None)
@click.option("--description", default=None)
@click.option("--suspend/--resume", "suspended", default=None, help="Make no copies for a while, or again.")
@click.option("--json", "as_json", is_flag=True)
def rule_update(name: str, as_json: bool, **changes: Any) -> None:
    """Change a rule."""
    given = {key: value for key, value in changes.items() if value is not None}
    if "lifetime" in given:
        given["lifetime"] = duration(given["lifetime"], "--lifetime")
    show_one(_row(with_client(lambda client: client.rules.update(name, **given))), as_json)


@rule.command("rm")
@click.argument("name")
def rule_rm(name: str) -> None:
    """End a rule; its copies stay until somebody needs the space."""
    answer = with_client(lambda client: client.rules.delete(name))
    click.echo(f"{answer.released_copies} copies are protected no longer by this rule")


@rule.command("why")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def rule_why(name: str, as_json: bool) -> None:
    """Say why a rule is not satisfied, what would change it and who can."""
    _explained(with_client(lambda client: client.rules.explain(name)), as_json)


@click.group()
def policy() -> None:
    """Give new datasets rules by themselves."""


@policy.command("create")
@click.argument("name")
@click.argument("datasets")
@click.argument("expression")
@_wanted
@click.option("--filter", "filter", default="", help='Also this must match: metadata.object = "Crab".')
@click.option("--existing", is_flag=True, help="Also for the datasets that are there already.")
def policy_create(name: str, datasets: str, expression: str, **options: Any) -> None:
    """Have every new dataset whose name matches DATASETS ("hess/*/dl3") get a rule."""
    made = with_client(lambda client: client.placement.create_policy(name, datasets, expression, **_plain(options)))
    click.echo(made.name.removeprefix("policies/"))


@policy.command("ls")
@listing
def policy_ls(**options: Any) -> None:
    """List policies."""
    form = format_of(options)
    rows = [
        {
            "id": one.name.removeprefix("policies/"),
            "datasets": one.dataset_pattern,
            "filter": one.filter,
            "expression": one.rule.expression,
            "copies": one.rule.copies,
            "rules": one.rules,
            "suspended": one.suspended,
            "owner": one.owner,
        }
        for one in with_client(lambda client: client.placement.policies())
    ]
    show_rows(rows, form, _POLICIES)


@policy.command("suspend")
@click.argument("name")
@click.option("--resume", is_flag=True, help="Go on.")
def policy_suspend(name: str, resume: bool) -> None:
    """Make no rules by a policy for a while."""
    with_client(lambda client: client.placement.suspend_policy(name, suspended=not resume))


@policy.command("rm")
@click.argument("name")
def policy_rm(name: str) -> None:
    """Forget a policy; the rules that it has made live on."""
    with_client(lambda client: client.placement.delete_policy(name))


@click.command("drain")
@click.argument("storage_element")
@click.option("--cancel", is_flag=True, help="Let it take files again.")
@click.option("--show", "only_show", is_flag=True, help="Only say how far it is.")
@click.option("--json", "as_json", is_flag=True)
def se_drain(storage_element: str, cancel: bool, only_show: bool, as_json: bool) -> None:
    """Empty a StorageElement: last copies and those of rules go elsewhere first."""
    if cancel:
        found = with_client(lambda client: client.placement.cancel_drain(storage_element))
    elif only_show:
        found = with_client(lambda client: client.placement.drained(storage_element))
    else:
        found = with_client(lambda client: client.placement.drain(storage_element))
    show_one(_drain(found), as_json)


@click.command("decommission")
@click.argument("storage_element")
@click.option("--json", "as_json", is_flag=True)
def se_decommission(storage_element: str, as_json: bool) -> None:
    """Empty a StorageElement, then forget it for good."""
    found = with_client(lambda client: client.placement.drain(storage_element, decommission=True))
    show_one(_drain(found), as_json)


@click.command("why")
@click.argument("storage_element")
@click.option("--json", "as_json", is_flag=True)
def se_why(storage_element: str, as_json: bool) -> None:
    """Say why a StorageElement that is drained is not empty yet."""
    _explained(with_client(lambda client: client.placement.explain_drain(storage_element)), as_json)


@click.command("rm-replicas")
@click.argument("storage_element")
@click.argument("files", nargs=-1, required=True)
def se_rm_replicas(storage_element: str, files: tuple[str, ...]) -> int:
    """Delete the copies of files on a StorageElement, but for those that are needed."""
    results = with_client(lambda client: client.placement.delete_replicas(storage_element, files))
    kept = [(file, one) for file, one in zip(files, results, strict=True) if one.code]
    for file, one in kept:
        talk(f"{file}: {one.message}")
    click.echo(f"{len(files) - len(kept)} are going to be deleted, {len(kept)} stay")
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
@click.option("--json", "as_json", is_flag=True)
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


SE_COMMANDS = (se_update, se_drain, se_decommission, se_why, se_rm_replicas)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, times as times."""
    given = {key: value for key, value in options.items() if value not in ("", None, False)}
    if "lifetime" in given:
        given["lifetime"] = duration(given["lifetime"], "--lifetime")
    return given


def _row(one: Any) -> dict[str, Any]:
    counts = one.counts
    return {
        "id": _id(one.name),
        "what": one.dataset or f"{one.directory} {one.filter}".strip(),
        "expression": one.expression,
        "copies": one.copies,
        "state": _state(one),
        "message": one.message,
        "files": counts.files,
        "ok": counts.ok_copies,
        "on_way": counts.replicating_copies,
        "stuck": counts.stuck_copies,
        "bytes": counts.bytes,
        "to_come": counts.missing_bytes,
        "until": one.expire_time.ToJsonString() if one.HasField("expire_time") else "",
        "priority": one.priority,
        "share": one.share,
        "policy": one.policy,
        "owner": one.owner,
        "description": one.description,
    }


def _drain(one: Any) -> dict[str, Any]:
    from khomas.api.storage.v1.drain_pb2 import Drain

    row = {**as_dict(one), "state": Drain.State.Name(one.state).removeprefix("STATE_")}
    return {"files_left": one.files_left, "bytes_left": one.bytes_left, **row}


def _explained(found: Any, as_json: bool) -> None:
    if as_json:
        show_one(as_dict(found), as_json=True)
        return
    why = f" ({found.reason})" if found.reason else ""
    click.echo(f"{found.state}{why}: {found.summary}")
    for remedy in found.remedies:
        click.echo(f"  {remedy.who}: {remedy.action}  {remedy.command}".rstrip())
    for detail in found.details:
        click.echo(f"  also: {detail}")


def _id(name: str) -> str:
    return name.removeprefix("replicationRules/")


def _state(one: Any) -> str:
    from khomas.api.storage.v1.rule_pb2 import ReplicationRule

    return ReplicationRule.State.Name(one.state).removeprefix("STATE_")


def _reason(number: Any) -> str:
    from khomas.api.storage.v1.rule_pb2 import CopyReason

    return CopyReason.Name(number).removeprefix("COPY_REASON_") if number else ""
