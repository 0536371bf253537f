"""Why something waits or failed: the command why, and how all explanations are printed."""

import contextlib
import re
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.output import as_dict, in_json, show_one
from khomas.cli.running import with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient


@click.command()
@click.argument("subject")
@in_json
def why(subject: str, as_json: bool) -> None:
    """Say why a job, transfer, recall, deletion, incident, production or release waits or failed, and what helps."""
    show_explanation(with_client(lambda client: _explain(client, subject)), as_json)


def show_explanation(found: Any, as_json: bool) -> None:
    """Print an explanation with its remedies."""
    if as_json:
        show_one(as_dict(found), as_json=True)
        return
    reason = f" ({found.reason})" if found.reason else ""
    click.echo(f"{found.state}{reason}: {found.summary}")
    for remedy in found.remedies:
        click.echo(f"  {remedy.who}: {remedy.action}  {remedy.command}".rstrip())
    for detail in found.details:
        click.echo(f"  also: {detail}")


async def _explain(client: "AsyncClient", subject: str) -> Any:
    from khomas.client.errors import KhomasError

    explained = {
        "transfers/": client.storage.explain,
        "replicationRules/": client.rules.explain,
        "drains/": client.placement.explain_drain,
        "recalls/": client.recalls.explain,
        "incidents/": client.integrity.explain_incident,
        "deletions/": client.integrity.explain_deletion,
        "releases/": client.archive.explain,
        "productions/": client.bookkeeping.explain,
    }
    for prefix, explain in explained.items():
        if subject.startswith(prefix):
            return await explain(subject)
    if re.match(r"^(jobs/)?[0-9a-f]{8}-", subject):
        return await client.jobs.explain(subject)
    with contextlib.suppress(KhomasError):
        return await client.bookkeeping.explain(subject)
    return await client.jobs.explain(subject)
