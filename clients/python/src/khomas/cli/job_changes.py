"""Commands that change jobs, and those that compare and explain them."""

import sys
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.jobs import wait_for
from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing, talk
from khomas.cli.output import show as show_rows
from khomas.cli.running import waiting, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option("--reason", default="", help="Why; shown to the owner.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@waiting("Wait until they have ended.")
@in_json
def cancel(jobs: tuple[str, ...], reason: str, yes: bool, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Cancel jobs."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"Cancel {', '.join(jobs)}?", abort=True, err=True)

    async def work(client: "AsyncClient") -> None:
        answer = await client.jobs.cancel(jobs, reason)
        counts = {name: getattr(answer, name) for name in ("cancelled", "cancelling", "already_final")}
        said = f"{answer.cancelled} cancelled, {answer.cancelling} cancelling, {answer.already_final} untouched (final)"
        say(counts, said, as_json)
        if wait:
            await wait_for(client, jobs, timeout, as_json)

    with_client(work)


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@in_json
def hold(jobs: tuple[str, ...], as_json: bool) -> None:
    """Keep waiting jobs from starting."""
    answer = with_client(lambda client: client.jobs.hold(jobs))
    counts = {"held": answer.held, "unchanged": answer.unchanged}
    say(counts, f"{answer.held} held, {answer.unchanged} unchanged", as_json)


@click.command("release-job")
@click.argument("jobs", nargs=-1, required=True)
@in_json
def release_job(jobs: tuple[str, ...], as_json: bool) -> None:
    """Let held jobs go on."""
    answer = with_client(lambda client: client.jobs.release(jobs))
    counts = {"released": answer.released, "unchanged": answer.unchanged}
    say(counts, f"{answer.released} released, {answer.unchanged} unchanged", as_json)


@click.command()
@click.argument("jobs", nargs=-1, required=True)
@click.option("--failed", is_flag=True, help="Only what failed; this is what happens anyway.")
@click.option("--reason", multiple=True, help="Only those with this reason.")
@click.option("--memory", help="New memory: 4GiB, or +50%.")
@click.option("--wall", help="New longest time: 2h, or +50%.")
@click.option("--workflow", is_flag=True, help="Also the jobs and mergers that waited for them in vain.")
@waiting("Wait for the end of the new jobs; exit code as of `khomas wait`.")
@in_json
def retry(
    jobs: tuple[str, ...],
    failed: bool,
    reason: tuple[str, ...],
    memory: str | None,
    wall: str | None,
    workflow: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Submit failed jobs again, as new jobs; logs and attempts of the old ones stay."""
    changes = {**_resources(memory, wall), "workflow": workflow}

    async def work(client: "AsyncClient") -> int:
        answer = await client.jobs.retry(jobs, reason, **changes)
        lines = [f"{'array' if job.HasField('counts') else 'job'} {job.uid}" for job in answer.jobs]
        said = "\n".join([*lines, f"{answer.retried} tried again"])
        say({"jobs": [job.uid for job in answer.jobs], "retried": answer.retried}, said, as_json)
        new = [job.name for job in answer.jobs]
        return await wait_for(client, new, timeout, as_json) if wait and new else 0

    return with_client(work)


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
@listing
def diff(one: str, other: str, **options: Any) -> int:
    """Compare spec, parameters, status and usage of two jobs. Exit code 1 when they differ."""
    form = format_of(options)
    left, right = (as_dict(job) for job in with_client(lambda client: client.jobs.get_many([one, other], full=True)))
    rows = [
        {"field": key, "one": mine if form.json else _short(mine), "other": theirs if form.json else _short(theirs)}
        for key, mine, theirs in _differences(left, right)
        if not key.startswith(("name", "uid", "etag"))
    ]
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
@in_json
def explain(reason: str, as_json: bool) -> None:
    """Say what a reason means; without one, list all."""
    from khomas.api.scheduler.v1 import state_pb2
    from khomas.client.specs import reason as known_reason

    comments = _comments()
    for number in [known_reason(reason)] if reason else filter(None, state_pb2.Reason.values()):
        name = state_pb2.Reason.Name(number).removeprefix("REASON_")
        comment = comments[number // 100]
        text = f"{name} ({number}): {comment}." if reason else f"{number}  {name}  ({comment})"
        say({"reason": name, "number": number, "meaning": comment}, text, as_json)


def _comments() -> dict[int, str]:
    return {
        1: "the job waits",
        2: "the payload itself",
        3: "a limit of the job",
        4: "the infrastructure",
        5: "the data",
        6: "a person decided it",
    }
