"""Commands about what the service does by policy: slow jobs, accounts."""

from typing import Any

import click

from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, listing
from khomas.cli.output import show as show_rows
from khomas.cli.running import with_client

_GROUPS = ("cause", "owner", "site", "jobs", "since")
_JOBS = ("id", "cause", "owner", "site", "node", "since", "kept", "kill_time", "message")


@click.command()
@click.option("--owner", default="", help="Only those of this owner.")
@click.option("--jobs", "each", is_flag=True, help="One line a job instead of one a cause, owner and site.")
@click.option("--keep", multiple=True, metavar="JOB", help="Answer for a job: it is meant to be slow.")
@listing
def slow(owner: str, each: bool, keep: tuple[str, ...], **options: Any) -> None:
    """List jobs that get on too slowly, and why."""
    form = format_of(options)
    if keep:
        answer = with_client(lambda client: client.jobs.keep_slow(keep))
        counts = {"kept": answer.kept, "unchanged": answer.unchanged}
        say(counts, f"{answer.kept} kept, {answer.unchanged} unchanged", form.json)
        return
    found = with_client(lambda client: client.jobs.slow(owner))
    if each or form.quiet:
        show_rows([_job(one) for one in found.jobs], form, _JOBS)
    else:
        show_rows([_group(one) for one in found.groups], form, _GROUPS, "cause")


def _group(group: Any) -> dict[str, Any]:
    row = {**dict.fromkeys(_GROUPS, ""), **as_dict(group)}
    return {**row, "cause": _cause(row["cause"])}


def _job(job: Any) -> dict[str, Any]:
    row = {**dict.fromkeys(_JOBS, ""), "kept": False, "cpu_efficiency": 0.0, **as_dict(job)}
    return {**row, "id": job.job.removeprefix("jobs/"), "cause": _cause(row["cause"])}


def _cause(name: str) -> str:
    return name.removeprefix("CAUSE_")


_SHARES = ("share", "class", "weight", "reserved", "entitled", "used", "running", "queued", "cpu_day", "limits")


@click.command()
@listing
def shares(**options: Any) -> None:
    """List the accounts that jobs are charged to."""
    form = format_of(options)
    found = with_client(lambda client: client.jobs.shares())
    show_rows([_share(one) for one in found], form, _SHARES, "share")


def _share(share: Any) -> dict[str, Any]:
    limits = {"queued": share.max_queued_jobs, "running": share.max_running_jobs}
    if share.HasField("max_cpu_per_day"):
        limits["cpu_day"] = share.max_cpu_per_day.seconds
    return {
        "share": share.name or "(all)",
        "class": share.priority_class,
        "weight": share.weight,
        "reserved": share.reserved,
        "entitled": round(share.entitled, 4),
        "used": round(share.used, 4),
        "running": share.running_jobs,
        "queued": share.queued_jobs,
        "cpu_day": share.cpu_used_last_day.seconds,
        "cpu": share.cpu_used.seconds,
        "limits": {name: limit for name, limit in limits.items() if limit},
    }
