"""Runs the commands of batch systems under a deadline, and lets people see later what was run."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_KEPT = 4096
_SECRETS = (
    re.compile(r"(?i)(bearer\s+)[^\s'\"]+"),
    re.compile(r"(?i)((?:token|password|passwd|secret|authorization|api[-_]?key)\s*[=:]\s*)[^\s'\"&,;]+"),
    re.compile(r"()eyJ[\w-]{8,}\.[\w-]+\.[\w-]*"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a batch system, or one call of its REST interface, as it went; without secrets."""

    argv: tuple[str, ...]
    # HTTP status for a REST call; None = it did not end in time, or could not be started.
    exit_code: int | None
    # The end of it, at most 4 KiB.
    stderr: str
    start_time: datetime
    duration: timedelta


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it printed."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def complaint(self) -> str:
        """What it said went wrong, as one line."""
        said = " ".join(self.stderr.decode("utf-8", "replace").split())
        return redacted(said)[-1000:] or f"it ended with exit code {self.exit_code} and said nothing"


class CommandFailedError(Exception):
    """A command could not be started, was not answered in time, or failed as a whole."""


_recorded: ContextVar[list[Command] | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Command]]:
    """Collect the commands that are run inside, also by tasks that are started there."""
    commands: list[Command] = []
    before = _recorded.set(commands)
    try:
        yield commands
    finally:
        _recorded.reset(before)


def note(argv: Sequence[str], exit_code: int | None, stderr: str, start_time: datetime, seconds: float) -> None:
    """Record a command or a call that was made in another way than by `run`."""
    commands = _recorded.get()
    if commands is not None:
        words = tuple(redacted(word) for word in argv)
        said = redacted(stderr)[-_KEPT:]
        commands.append(Command(words, exit_code, said, start_time, timedelta(seconds=seconds)))


def redacted(text: str) -> str:
    """Text without what looks like a secret."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1[redacted]", text)
    return text


async def run(
    argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None, seconds: float, noted: bool = True
) -> Result:
    """Run one command in a process group of its own that ends with the deadline.

    `env` replaces the environment. Raises `CommandFailedError` when it cannot be started or takes too long.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(env) if env is not None else None,
            start_new_session=True,
        )
    except OSError as error:
        if noted:
            note(argv, None, str(error), began, 0.0)
        raise CommandFailedError(f"{argv[0]} cannot be started: {error}") from error
    try:
        async with asyncio.timeout(seconds):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError:
        if noted:
            note(argv, None, f"no answer within {seconds:g} s", began, time.monotonic() - clock)
        raise CommandFailedError(f"{argv[0]} did not answer within {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if noted:
        note(argv, process.returncode, stderr.decode("utf-8", "replace"), began, time.monotonic() - clock)
    return Result(process.returncode, stdout, stderr)
