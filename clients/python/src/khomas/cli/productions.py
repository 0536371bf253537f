"""Commands about productions."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.jobs import read_document
from khomas.cli.output import TABLE, as_dict, format_of, in_json, listing, show_one
from khomas.cli.output import answer as say
from khomas.cli.output import show as show_rows
from khomas.cli.running import Ticker, limited, waiting, with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

_WATCH_SECONDS = 2.0


@click.group()
def prod() -> None:
    """Create, watch and steer productions."""


@prod.command("create")
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--requested", help="Events of every cell, instead of the document's: 200e6.")
@click.option("--on", multiple=True, metavar="BACKEND", help="Where its jobs may run, instead of the document's.")
@click.option("--se", multiple=True, metavar="ID", help="Where its outputs go, instead of the document's.")
@click.option("--dry-run", is_flag=True, help="Plan it, make nothing.")
@waiting("Wait until it ends or is paused; exit code as of `khomas prod wait`.")
@in_json
def prod_create(
    document: Path,
    requested: str | None,
    on: tuple[str, ...],
    se: tuple[str, ...],
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Make a production from a file and start it."""
    content = read_document(document)
    jobs = [stage["job"] for stage in content.get("stages", []) if isinstance(stage.get("job"), dict)]
    for job in jobs if on else ():
        job["on"] = list(on)
    for output in [output for job in jobs for output in job.get("outputs", [])] if se else ():
        output["se"] = list(se)
    if requested:
        for stage in content.get("stages", []):
            if "grid" in stage:
                stage["requested_events"] = requested
    answer = with_client(lambda client: _create(client, content, document.parent, dry_run))
    name = answer.production.name.removeprefix("productions/")
    if as_json:
        show_one(as_dict(answer), as_json=True)
    elif dry_run:
        _show_cells(answer.cells)
        click.echo(f"{name}: {sum(cell.progress.jobs_to_go for cell in answer.cells)} jobs planned in grids")
    else:
        click.echo(f"production {name}; follow with: khomas prod show {name} --watch")
    return _wait(name, timeout, as_json) if wait and not dry_run else 0


async def _create(client: "AsyncClient", content: dict[str, Any], folder: Path, dry_run: bool) -> Any:
    from khomas.client.specs import Sandboxes, production

    sandboxes = Sandboxes(folder)
    wanted = production(content, sandboxes)
    if sandboxes.contents:
        await client.jobs.upload_sandboxes(sandboxes.contents)
    return await client.bookkeeping.create_production(wanted, validate_only=dry_run)


@prod.command("ls")
@click.option("--filter", "filter_text", default="")
@listing
def prod_ls(filter_text: str, **options: Any) -> None:
    """List productions."""
    form = format_of(options)
    found = with_client(lambda client: client.bookkeeping.productions(filter_text))
    columns = ("id", "state", "jobs", "succeeded", "failed", "active", "created")
    show_rows([_row(one) for one in found], form, columns)


def _row(one: Any) -> dict[str, Any]:
    from khomas.api.bookkeeping.v1.production_pb2 import Production

    return {
        "id": one.name.removeprefix("productions/"),
        "state": Production.State.Name(one.state).removeprefix("STATE_"),
        "jobs": one.progress.jobs_total,
        "succeeded": one.progress.jobs_succeeded,
        "failed": one.progress.jobs_failed,
        "active": one.progress.jobs_active,
        "message": one.message,
        "tags": dict(one.tags),
        "created": one.create_time.ToJsonString(),
        "owner": one.owner,
    }


@prod.command("show")
@click.argument("name")
@click.option("--watch", is_flag=True, help="Refresh until it ends.")
@in_json
def prod_show(name: str, watch: bool, as_json: bool) -> None:
    """Show the tables of a production: its stages, and the cells of its grids."""
    from khomas.api.bookkeeping.v1.production_pb2 import Production

    while True:
        found, cells = with_client(lambda client: _read(client, name))
        if as_json:
            show_one({**as_dict(found), "cells": [as_dict(cell) for cell in cells]}, as_json=True)
        else:
            if watch:
                click.clear()
            _show(found, cells)
        if not watch or found.state >= Production.STATE_COMPLETED:
            return
        time.sleep(_WATCH_SECONDS)


async def _read(client: "AsyncClient", name: str) -> tuple[Any, list[Any]]:
    found = await client.bookkeeping.production(name)
    cells: list[Any] = []
    for stage in found.stages:
        if stage.WhichOneof("source") == "grid":
            cells += await client.bookkeeping.cells(name, stage.name)
    return found, cells


def _show(found: Any, cells: list[Any]) -> None:
    row = _row(found)
    click.echo(f"{row['id']}  {row['state']}  {found.description}{f'  {found.message}' if found.message else ''}")
    rows = [
        {
            "stage": stage.name,
            "files": stage.progress.input_files,
            "items": f"{stage.progress.items_processed}/{stage.progress.items_total}",
            "jobs": stage.progress.jobs_total,
            "succeeded": stage.progress.jobs_succeeded,
            "failed": stage.progress.jobs_failed,
            "active": stage.progress.jobs_active,
            "complete": stage.progress.complete,
        }
        for stage in found.stages
    ]
    show_rows(rows, TABLE, ("stage", "files", "items", "jobs", "succeeded", "failed", "active", "complete"), "stage")
    if cells:
        _show_cells(cells)


def _show_cells(cells: Any) -> None:
    from khomas.api.bookkeeping.v1.production_pb2 import Cell

    rows = []
    for cell in cells:
        parameters = {name: cell.parameters[name] for name in cell.columns}
        rows.append(
            {
                **parameters,
                "requested": f"{cell.requested_events:,}",
                "produced": f"{cell.progress.produced_events:,}",
                "jobs": cell.progress.jobs_total or cell.progress.jobs_to_go,
                "to go": cell.progress.jobs_to_go,
                "status": Cell.State.Name(cell.state).removeprefix("STATE_"),
            }
        )
    if rows:
        show_rows(rows, TABLE, list(rows[0]), next(iter(rows[0])))


@prod.command("wait")
@click.argument("name")
@limited
@in_json
def prod_wait(name: str, timeout: float | None, as_json: bool) -> int:
    """Wait for a production to end. Exit code: 0 completed, 1 failed or paused, 3 cancelled, 124 time-out."""
    return _wait(name, timeout, as_json)


def _wait(name: str, timeout: float | None, as_json: bool) -> int:
    from khomas.api.bookkeeping.v1.production_pb2 import Production
    from khomas.client.errors import CANCELLED, FAILED

    ticker = Ticker()
    found = with_client(
        lambda client: client.bookkeeping.wait(name, timeout=timeout, on_look=lambda one: ticker(_line(one)))
    )
    ticker.done()
    say(_row(found), _line(found), as_json)
    if found.state == Production.STATE_COMPLETED:
        return 0
    return CANCELLED if found.state == Production.STATE_CANCELLED else FAILED


def _line(one: Any) -> str:
    row = _row(one)
    counts = f"{row['succeeded']}/{row['jobs']} jobs, {row['failed']} failed, {row['active']} active"
    return f"{row['id']}  {row['state']}  {counts}  {one.message}".rstrip()


@prod.command("items")
@click.argument("name")
@click.option("--stage", default="")
@click.option("--filter", "filter_text", default="", help="AIP-160: state = MAX_TRIES.")
@listing
def prod_items(name: str, stage: str, filter_text: str, **options: Any) -> None:
    """List the work items of data stages."""
    from khomas.api.bookkeeping.v1.production_pb2 import WorkItem

    form = format_of(options)
    rows = [
        {
            "id": one.name.rpartition("/")[2],
            "state": WorkItem.State.Name(one.state).removeprefix("STATE_"),
            "group": one.group,
            "files": list(one.files),
            "job": one.job.removeprefix("jobs/"),
            "tries": one.tries,
            "message": one.message,
            # What `khomas why` takes.
            "name": one.name,
        }
        for one in with_client(lambda client: client.bookkeeping.items(name, stage, filter_text))
    ]
    show_rows(rows, form, ("id", "state", "group", "job", "tries", "message"))


@prod.command("pause")
@click.argument("name")
@in_json
def prod_pause(name: str, as_json: bool) -> None:
    """Make no new jobs until it is resumed."""
    _change("pause", name, as_json)


@prod.command("resume")
@click.argument("name")
@waiting("Wait until it ends or is paused; exit code as of `khomas prod wait`.")
@in_json
def prod_resume(name: str, wait: bool, timeout: float | None, as_json: bool) -> int:
    """Go on; work items that failed too often get new tries."""
    _change("resume", name, as_json)
    return _wait(name, timeout, as_json) if wait else 0


@prod.command("cancel")
@click.argument("name")
@waiting("Wait until its jobs have ended.")
@in_json
def prod_cancel(name: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Give it up and cancel its jobs; what was produced stays."""
    _change("cancel", name, as_json)
    if wait:
        ticker = Ticker()
        wanted = f'tags.production = "{name.removeprefix("productions/")}"'
        with_client(
            lambda client: client.jobs.wait_for_all(
                wanted, timeout=timeout, on_look=lambda left: ticker(f"{left} jobs to end")
            )
        )
        ticker.done()


@prod.command("flush")
@click.argument("name")
@click.argument("stage")
@in_json
def prod_flush(name: str, stage: str, as_json: bool) -> None:
    """Submit incomplete groups of a data stage now."""
    _change("flush", name, as_json, stage=stage)


def _change(verb: str, name: str, as_json: bool, **fields: str) -> None:
    found = with_client(lambda client: client.bookkeeping.change_production(verb, name, **fields))
    say(_row(found), _line(found), as_json)
