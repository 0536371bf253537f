"""Runs the commands that renew credentials."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from khomas.kit.credentials.interface import RenewalFailed
from khomas.kit.telemetry.logs import redacted

_SECONDS = 60.0
_SAID = 500


async def run(argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> None:
    """Run a command under a deadline. Raises `RenewalFailed`, with the end of what it complained about.

    A secret goes in by stdin, never by an argument: every user of a machine can see those.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise RenewalFailed(f"{argv[0]} cannot be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(_SECONDS):
            _, complaint = await process.communicate(stdin)
    except TimeoutError as error:
        raise RenewalFailed(f"{argv[0]} did not end within {_SECONDS:.0f} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        raise RenewalFailed(f"{argv[0]} ended with exit code {process.returncode}: {_clean(complaint, stdin)}")


def _clean(complaint: bytes, stdin: bytes) -> str:
    """The end of a complaint, also without what went in should the command have repeated it."""
    for secret in filter(None, stdin.splitlines()):
        complaint = complaint.replace(secret, b"[redacted]")
    return redacted(" ".join(complaint.decode("utf-8", "replace").split()))[-_SAID:] or "it said nothing"
