"""Commands about rules and policies."""

from collections.abc import Callable
from typing import Any

import click

from khomas.cli.explanations import show_explanation
from khomas.cli.output import answer as say
from khomas.cli.output import format_of, in_json, listing, show_one, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import Ticker, waiting, with_client
from khomas.client.units import duration, show_duration, show_size

_COLUMNS = ("id", "what", "expression", "copies", "state", "files", "ok", "on_way", "stuck", "to_come", "until")
_COPIES = ("file", "at", "state", "reason", "message")
_ELEMENTS = ("at", "there", "to_copy", "bytes", "free", "MB/s")
_ALL_THERE = "Wait until all copies are there, or some cannot be made."
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
@waiting(_ALL_THERE)
@in_json
def rule_create(expression: str, wait: bool, timeout: float | None, as_json: bool, **options: Any) -> int:
    """Want copies of a dataset or of a directory on StorageElements."""
    made = with_client(lambda client: client.rules.create(expression, **_plain(options)))
    if wait:
        made = _waited(made, timeout)
    say(_row(made), _id(made.name), as_json)
    return int(wait and _is_short(made))


def _waited(rule: Any, timeout: float | None) -> Any:
    ticker = Ticker()
    found = with_client(
        lambda client: client.rules.wait(
            rule.name, timeout=timeout, on_look=lambda one: ticker(f"{one.counts.replicating_copies} copies to come")
        )
    )
    ticker.done()
    if _is_short(found):
        talk(f"{_state(found)}: {found.message}; khomas rule why {_id(found.name)}")
    return found


def _is_short(rule: Any) -> bool:
    return _state(rule) != "OK"


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
@in_json
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
@waiting(_ALL_THERE)
@in_json
def rule_update(name: str, wait: bool, timeout: float | None, as_json: bool, **changes: Any) -> int:
    """Change a rule."""
    given = {key: value for key, value in changes.items() if value is not None}
    if "lifetime" in given:
        given["lifetime"] = duration(given["lifetime"], "--lifetime")
    changed = with_client(lambda client: client.rules.update(name, **given))
    if wait:
        changed = _waited(changed, timeout)
    show_one(_row(changed), as_json)
    return int(wait and _is_short(changed))


@rule.command("rm")
@click.argument("name")
@in_json
def rule_rm(name: str, as_json: bool) -> None:
    """End a rule; its copies stay until somebody needs the space."""
    released = with_client(lambda client: client.rules.delete(name)).released_copies
    say({"released_copies": released}, f"{released} copies are protected no longer by this rule", as_json)


@rule.command("why")
@click.argument("name")
@in_json
def rule_why(name: str, as_json: bool) -> None:
    """Say why a rule is not satisfied, what would change it and who can."""
    show_explanation(with_client(lambda client: client.rules.explain(name)), as_json)


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
@in_json
def policy_create(name: str, datasets: str, expression: str, as_json: bool, **options: Any) -> None:
    """Have every new dataset whose name matches DATASETS ("hess/*/dl3") get a rule."""
    made = with_client(lambda client: client.placement.create_policy(name, datasets, expression, **_plain(options)))
    row = _policy(made)
    say(row, row["id"], as_json)


@policy.command("ls")
@listing
def policy_ls(**options: Any) -> None:
    """List policies."""
    form = format_of(options)
    show_rows([_policy(one) for one in with_client(lambda client: client.placement.policies())], form, _POLICIES)


def _policy(one: Any) -> dict[str, Any]:
    return {
        "id": one.name.removeprefix("policies/"),
        "datasets": one.dataset_pattern,
        "filter": one.filter,
        "expression": one.rule.expression,
        "copies": one.rule.copies,
        "rules": one.rules,
        "suspended": one.suspended,
        "owner": one.owner,
    }


@policy.command("suspend")
@click.argument("name")
@click.option("--resume", is_flag=True, help="Go on.")
@in_json
def policy_suspend(name: str, resume: bool, as_json: bool) -> None:
    """Make no rules by a policy for a while."""
    found = with_client(lambda client: client.placement.suspend_policy(name, suspended=not resume))
    if as_json:
        show_one(_policy(found), as_json)


@policy.command("rm")
@click.argument("name")
@in_json
def policy_rm(name: str, as_json: bool) -> None:
    """Forget a policy; the rules that it has made live on."""
    with_client(lambda client: client.placement.delete_policy(name))
    if as_json:
        show_one({"id": name.removeprefix("policies/")}, as_json)


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


def _id(name: str) -> str:
    return name.removeprefix("replicationRules/")


def _state(one: Any) -> str:
    from khomas.api.storage.v1.rule_pb2 import ReplicationRule

    return ReplicationRule.State.Name(one.state).removeprefix("STATE_")


def _reason(number: Any) -> str:
    from khomas.api.storage.v1.rule_pb2 import CopyReason

    return CopyReason.Name(number).removeprefix("COPY_REASON_") if number else ""
