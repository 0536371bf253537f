"""Commands about what the service does by policy: slow jobs."""

from typing import Any

import click

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
        click.echo(f"{answer.kept} kept, {answer.unchanged} unchanged")
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
