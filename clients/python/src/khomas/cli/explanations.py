"""Why something waits or failed: the command why, and how all explanations are printed."""

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.output import as_dict, in_json, show_one
from khomas.cli.running import with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

_ITEM = re.compile(r"productions/[^/]+/stages/[^/]+/items/[^/]+")
_JOB = re.compile(r"[0-9a-f]{8}-")


@click.command()
@click.argument("subject")
@in_json
def why(subject: str, as_json: bool) -> None:
    """Say why something waits or failed, and what helps: a job or production by its id, all else by its full name.

    Names are like transfers/0190…: transfers, recalls, uploads, deletions, incidents, reconciliations,
    replicationRules, drains, adoptions, productions and their items, jobs, releases.
    """
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
    from khomas.client.errors import NOT_FOUND, KhomasError

    kinds: dict[str, Callable[[str], Awaitable[Any]]] = {
        "jobs": client.jobs.explain,
        "productions": client.bookkeeping.explain,
        "transfers": client.storage.explain,
        "recalls": client.recalls.explain,
        "uploads": client.storage.explain_upload,
        "adoptions": client.catalog.explain_adoption,
        "replicationRules": client.rules.explain,
        "drains": client.placement.explain_drain,
        "deletions": client.integrity.explain_deletion,
        "incidents": client.integrity.explain_incident,
        "reconciliations": client.integrity.explain_comparison,
        "releases": client.archive.explain,
    }
    kind, slash, _ = subject.partition("/")
    if _ITEM.fullmatch(subject):
        return await client.bookkeeping.explain_item(subject)
    if slash and kind in kinds:
        return await kinds[kind](subject)
    # A child of an array is named by its array.
    if _JOB.match(subject):
        return await client.jobs.explain(subject)
    if not slash:
        try:
            return await client.bookkeeping.explain(subject)
        except KhomasError as error:
            if error.exit_code != NOT_FOUND:
                raise
    known = ", ".join(f"{one}/…" for one in kinds)
    file = f" Where a file came from: khomas trace {subject}" if subject.startswith("/") else ""
    raise click.UsageError(
        f"{subject} is nothing that can be explained: give the id of a job, the name of a production or of one of its "
        f"items, or one of {known}.{file}"
    )
