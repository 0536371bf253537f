"""Commands that change jobs, and those that compare and explain them."""

import json
import sys
from typing import Any

import click

from khomas.cli.output import as_dict, format_of, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import with_client


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option("--reason", default="", help="Why; shown to the owner.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True)
def cancel(jobs: tuple[str, ...], reason: str, yes: bool, as_json: bool) -> None:
    """Cancel jobs."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Cancel {', '.join(jobs)}?", abort=True, err=True)
    answer = with_client(lambda client: client.jobs.cancel(jobs, reason))
    if as_json:
        click.echo(json.dumps(as_dict(answer)))
        return
    click.echo(
        f"{answer.cancelled} cancelled, {answer.cancelling} cancelling, {answer.already_final} untouched (final)"
    )


@click.command()
@click.argument("jobs", nargs=-1, required=True)
def hold(jobs: tuple[str, ...]) -> None:
    """Keep waiting jobs from starting."""
    answer = with_client(lambda client: client.jobs.hold(jobs))
    click.echo(f"{answer.held} held, {answer.unchanged} unchanged")


@click.command("release-job")
@click.argument("jobs", nargs=-1, required=True)
def release_job(jobs: tuple[str, ...]) -> None:
    """Let held jobs go on."""
    answer = with_client(lambda client: client.jobs.release(jobs))
    click.echo(f"{answer.released} released, {answer.unchanged} unchanged")


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option("--failed", is_flag=True, help="Only what failed; this is what happens anyway.")
@click.option("--reason", multiple=True, help="Only those with this reason.")
@click.option("--memory", help="New memory: 4GiB, or +50%.")
@click.option("--wall", help="New longest time: 2h, or +50%.")
@click.option("--workflow", is_flag=True, help="Also the jobs and mergers that waited for them in vain.")
@click.option("--json", "as_json", is_flag=True)
def retry(
    jobs: tuple[str, ...],
    failed: bool,
    reason: tuple[str, ...],
    memory: str | None,
    wall: str | None,
    workflow: bool,
    as_json: bool,
) -> None:
    """Submit failed jobs again, as new jobs; logs and attempts of the old ones stay."""
    changes = {**_resources(memory, wall), "workflow": workflow}
    answer = with_client(lambda client: client.jobs.retry(jobs, reason, **changes))
    if as_json:
        click.echo(json.dumps({"jobs": [job.uid for job in answer.jobs], "retried": answer.retried}))
        return
    for job in answer.jobs:
        click.echo(f"{'array' if job.HasField('counts') else 'job'} {job.uid}")
    click.echo(f"{answer.retried} tried again")


def _resources(memory: str | None, wall: str | None) -> dict[str, Any]:
    from google.protobuf.duration_pb2 import Duration

    from khomas.client.units import duration, size

    changes: dict[str, Any] = {}
    if memory and memory.startswith("+"):
        changes["memory_factor"] = _factor(memory, "--memory")
    elif memory:
        changes["memory_bytes"] = size(memory, "--memory")
    if wall and wall.startswith("+"):
        changes["wall_time_factor"] = _factor(wall, "--wall")
    elif wall:
        changes["wall_time"] = Duration(seconds=round(duration(wall, "--wall").total_seconds()))
    return changes


def _factor(text: str, option: str) -> float:
    try:
        return 1 + float(text.strip("+%")) / 100
    except ValueError:
        raise click.UsageError(f"{option} takes +50% or a value with a unit, not {text}") from None


@click.command()
@click.argument("one")
@click.argument("other")
def diff(one: str, other: str) -> int:
    """Compare spec, parameters, status and usage of two jobs. Exit code 1 when they differ."""
    left, right = (as_dict(job) for job in with_client(lambda client: client.jobs.get_many([one, other], full=True)))
    rows = [
        {"field": key, "one": _short(mine), "other": _short(theirs)}
        for key, mine, theirs in _differences(left, right)
        if not key.startswith(("name", "uid", "etag"))
    ]
    form = format_of({"as_json": False, "as_csv": False, "quiet": False, "columns": ""})
    show_rows(rows, form, ("field", "one", "other"), "field")
    return 1 if rows else 0


def _differences(left: Any, right: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(left, dict) and isinstance(right, dict):
        found = []
        for key in sorted({*left, *right}):
            found += _differences(left.get(key), right.get(key), f"{place}.{key}" if place else key)
        return found
    return [] if left == right else [(place, left, right)]


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


@click.command()
@click.argument("job")
def export(job: str) -> None:
    """Print a job as a job file that `khomas submit` takes."""
    import yaml

    from khomas.client.exporting import document_of_job, left_out

    found = with_client(lambda client: client.jobs.get(job))
    click.echo(yaml.safe_dump(document_of_job(found), sort_keys=False, allow_unicode=True), nl=False)
    if lost := left_out(found.spec):
        talk(f"note: job files have no words for {', '.join(lost)}; these are left out")


@click.command()
@click.argument("reason", default="")
def explain(reason: str) -> None:
    """Say what a reason means; without one, list all."""
    from khomas.api.scheduler.v1 import state_pb2
    from khomas.client.specs import reason as known_reason

    comments = _comments()
    if reason:
        number = known_reason(reason)
        name = state_pb2.Reason.Name(number)
        click.echo(f"{name.removeprefix('REASON_')} ({number}): {comments[number // 100]}.")
        return
    for number in state_pb2.Reason.values():
        if number:
            name = state_pb2.Reason.Name(number).removeprefix("REASON_")
            click.echo(f"{number}  {name}  ({comments[number // 100]})")


def _comments() -> dict[int, str]:
    return {
        1: "the job waits",
        2: "the payload itself",
        3: "a limit of the job",
        4: "the infrastructure",
        5: "the data",
        6: "a person decided it",
    }
