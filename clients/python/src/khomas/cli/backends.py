"""Commands about batch systems: the table of computing elements, ban, drain, unban."""

from typing import Any

import click

from khomas.cli.output import answer as say
from khomas.cli.output import as_dict, format_of, in_json, listing
from khomas.cli.output import show as show_rows
from khomas.cli.running import Ticker, waiting, with_client

_COLUMNS = (
    "id", "queue", "site", "status", "response_time", "cpus", "free", "running", "queued", "ours",
    "success", "sample", "in_use", "rank", "why",
)  # fmt: skip


@click.group(invoke_without_command=True)
@listing
@click.pass_context
def backends(context: click.Context, /, **options: Any) -> None:
    """List the batch systems and their queues, with rank and why; or close and open them."""
    if context.invoked_subcommand is not None:
        return
    form = format_of(options)
    found = with_client(lambda client: client.jobs.backends())
    rows = [_row(backend, queue) for backend in found for queue in backend.resources]
    if form.quiet:
        rows = list({row["id"]: row for row in rows}.values())
    show_rows(sorted(rows, key=lambda row: -row["rank"]), form, _COLUMNS)


@backends.command()
@click.argument("backend")
@click.option("--for", "span", help="How long: 2h. Without it until `unban`.")
@click.option("--reason", required=True, help="Why; shown to everybody.")
@in_json
def ban(backend: str, span: str | None, reason: str, as_json: bool) -> None:
    """Give a backend no new jobs for a while."""
    from khomas.client.units import duration

    length = duration(span, "--for") if span else None
    _say(with_client(lambda client: client.jobs.ban_backend(backend, reason, length)), as_json)


@backends.command()
@click.argument("backend")
@click.option("--reason", required=True, help="Why; shown to everybody.")
@waiting("Wait until it has none of our jobs.")
@in_json
def drain(backend: str, reason: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Give a backend no new jobs until `unban`: before a shutdown."""
    _say(with_client(lambda client: client.jobs.drain_backend(backend, reason)), as_json)
    if wait:
        ticker = Ticker()
        with_client(
            lambda client: client.jobs.wait_for_backend(
                backend, timeout=timeout, on_look=lambda jobs: ticker(f"{jobs} jobs there")
            )
        )
        ticker.done()


@backends.command()
@click.argument("backend")
@in_json
def unban(backend: str, as_json: bool) -> None:
    """Give a backend jobs again."""
    _say(with_client(lambda client: client.jobs.unban_backend(backend)), as_json)


def _say(backend: Any, as_json: bool) -> None:
    id_, status = backend.name.removeprefix("backends/"), _status(backend.status)
    text = f"{id_} {status}{f': {backend.message}' if backend.message else ''}"
    say({"id": id_, "status": status, "message": backend.message}, text, as_json)


def _status(number: Any) -> str:
    from khomas.api.scheduler.v1.placement_pb2 import Backend

    return Backend.Status.Name(number).removeprefix("STATUS_")


def _row(backend: Any, queue: Any) -> dict[str, Any]:
    def known(field: str) -> Any:
        return getattr(queue, field) if queue.HasField(field) else None

    wait, wall = known("response_time"), known("max_wall_time")
    return {
        "id": backend.name.removeprefix("backends/"),
        "kind": backend.kind,
        "queue": queue.queue,
        "site": queue.site,
        "status": _status(queue.status),
        "response_time": round(wait.ToTimedelta().total_seconds()) if wait is not None else None,
        "cpus": known("cpus"),
        "free": known("free_cpus"),
        "running": known("running_jobs"),
        "queued": known("queued_jobs"),
        "ours": queue.our_running_jobs + queue.our_queued_jobs,
        "our_running": queue.our_running_jobs,
        "our_queued": queue.our_queued_jobs,
        "max_wall_time": round(wall.ToTimedelta().total_seconds()) if wall is not None else None,
        "max_memory_bytes": known("max_memory_bytes"),
        "max_cpus": known("max_cpus"),
        "platforms": list(queue.platforms),
        "power_hs23": known("power_per_core_hs23"),
        "success": queue.success_rate,
        "sample": queue.success_sample,
        "in_use": queue.in_use,
        "rank": queue.rank,
        "why": backend.message or queue.rank_why,
        "rank_why": queue.rank_why,
        "message": backend.message,
        "closure": as_dict(backend.closure) if backend.HasField("closure") else {},
        "observed": queue.observe_time.ToJsonString() if queue.HasField("observe_time") else None,
    }
