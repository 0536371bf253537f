"""What was said to batch systems about a job."""

import shlex
from typing import Any

import click

from khomas.cli.output import format_of, listing, show
from khomas.cli.running import with_client

_COLUMNS = ("time", "operation", "backend", "attempt", "command", "exit_code", "seconds", "stderr")
_TABLE_CHARS = 120


@click.group()
def job() -> None:
    """Look into a job."""


@job.command("commands")
@click.argument("name", metavar="JOB")
@click.option("--attempt", type=click.IntRange(min=0), default=0, help="Only those of this attempt.")
@click.option("-v", "--verbose", is_flag=True, help="Whole commands, and all that they said.")
@listing
def commands(name: str, attempt: int, verbose: bool, **options: Any) -> None:
    """List the commands and REST calls of a job's attempts, with exit code and stderr."""
    form = format_of(options)
    rows = [_row(one) for one in with_client(lambda client: client.jobs.commands(name, attempt))]
    if not (verbose or form.json or form.csv):
        rows = [{**row, "command": _cut(row["command"]), "stderr": _last_line(row["stderr"])} for row in rows]
    show(rows, form, _COLUMNS)


def _row(command: Any) -> dict[str, Any]:
    from khomas.api.scheduler.v1.job_command_pb2 import JobCommand

    return {
        "id": command.uid,
        "time": command.start_time.ToJsonString(),
        "operation": JobCommand.Operation.Name(command.operation).removeprefix("OPERATION_").lower(),
        "backend": command.backend.removeprefix("backends/"),
        "attempt": command.attempt,
        "command": shlex.join(command.argv),
        "argv": list(command.argv),
        "exit_code": command.exit_code if command.HasField("exit_code") else None,
        "failed": command.failed,
        "seconds": round(command.duration.ToMicroseconds() / 1e6, 3),
        "stderr": command.stderr,
        "jobs": command.jobs,
    }


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TABLE_CHARS else f"{line[:_TABLE_CHARS]}…"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return _cut(lines[-1]) if lines else ""
