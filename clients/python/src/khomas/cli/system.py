"""Commands about the installation: events, auth, up, completion."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from khomas.cli.output import as_dict, talk
from khomas.cli.running import with_client

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

_AREAS = ("catalog", "storage", "scheduler", "bookkeeping", "archive")


@click.command()
@click.argument("area", type=click.Choice(_AREAS))
@click.option("--cursor", default="now", help='Where to start: a cursor, "now", or "" for the oldest.')
@click.option("--filter", "filter_text", default="", help='AIP-160: kind = "scheduler.job.*".')
@click.option("--until-now", is_flag=True, help="End with the newest event.")
def events(area: str, cursor: str, filter_text: str, until_now: bool) -> None:
    """Watch the events of a service, one JSON object a line."""
    from khomas.api.common.v1.event_pb2 import WatchEventsRequest

    async def work(client: "AsyncClient") -> None:
        request = WatchEventsRequest(cursor=cursor, filter=filter_text, until_now=until_now)
        async for batch in client.connection.stream(area, "WatchEvents", request, quiet_seconds=None):
            for event in batch.events:
                sys.stdout.write(json.dumps(_event(event)) + "\n")
            sys.stdout.flush()

    with_client(work)


def _event(event: Any) -> dict[str, Any]:
    return {key: value for key, value in as_dict(event).items() if key != "resource"}


@click.group()
def auth() -> None:
    """Say what a token allows."""


@auth.command("explain", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def auth_explain(arguments: tuple[str, ...]) -> None:
    """Explain the token in use, or the rule that refuses it."""
    _kit("khomas.kit.auth", "explain", *arguments)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def up(arguments: tuple[str, ...]) -> None:
    """Run every installed service in one process on one loopback port."""
    _kit("khomas.kit.up", *arguments)


def _kit(module: str, *arguments: str) -> None:
    try:
        there = find_spec(module) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        talk("This needs the services, which are not installed here: install khomas-kit and the services you want.")
        sys.exit(5)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  this very program


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(khomas completion bash)"."""
    environment = {**os.environ, "_KHOMAS_COMPLETE": f"{shell}_source"}
    answer = subprocess.run([sys.argv[0]], env=environment, capture_output=True, text=True, check=False)
    click.echo(answer.stdout, nl=False)
