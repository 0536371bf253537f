"""What people read about a job that failed."""

from typing import Any

from khomas.client import Client
from khomas.client.errors import KhomasError
from khomas.client.jobs import reason_of, state_of

_TAIL_BYTES = 4096
_TAIL_LINES = 20


def failure(client: Client, job: Any) -> str:
    """The reason as Khomas knows it, and the end of what the job printed."""
    reason = reason_of(job.status)
    text = f"Khomas job {job.uid} {state_of(job)}"
    text += f" ({reason})" if reason else ""
    text += f": {job.status.message}" if job.status.message else ""
    printed = _tail(client, job.name)
    text += f"\nThe end of its stderr (all of it: khomas logs --stderr {job.uid}):\n{printed}" if printed else ""
    return f"{text}\n"


def _tail(client: Client, name: str) -> str:
    """The last lines; empty when there are none, or they are not to be had now."""
    logs = client.asynchronous.jobs.logs(name, stream="stderr", offset=-_TAIL_BYTES)
    try:
        data = b"".join(client.iterate(logs))
    except KhomasError:
        return ""
    return "\n".join(data.decode(errors="replace").splitlines()[-_TAIL_LINES:])
