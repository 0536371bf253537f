"""What the scheduler shows to batch and grid systems."""

from typing import Any

import click

from khomas.cli.output import format_of, listing, show
from khomas.cli.running import with_client

_COLUMNS = ("id", "kind", "state", "subject", "expires", "renews", "used_by", "message")


@click.command()
@listing
def credentials(**options: Any) -> None:
    """List the credentials towards batch and grid systems, with how long they last."""
    from khomas.api.scheduler.v1.credential_pb2 import Credential

    form = format_of(options)
    found = with_client(lambda client: client.jobs.credentials())
    rows = [
        {
            "id": one.name.removeprefix("credentials/"),
            "kind": one.kind,
            "state": Credential.State.Name(one.state).removeprefix("STATE_"),
            "subject": one.subject,
            "expires": _moment(one, "expire_time"),
            "renews": one.renews,
            "used_by": [backend.removeprefix("backends/") for backend in one.used_by],
            "message": one.message,
            "remedy": one.remedy,
            "since": _moment(one, "since"),
            "not_before": _moment(one, "not_before_time"),
            "renewable_until": _moment(one, "renewable_until_time"),
            "can": list(one.can),
        }
        for one in found
    ]
    show(rows, form, _COLUMNS)


def _moment(message: Any, field: str) -> str:
    return getattr(message, field).ToJsonString() if message.HasField(field) else ""
