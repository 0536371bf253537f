"""What every command does: open a client, run, and turn errors into exit codes."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


def with_client(work: "Callable[[AsyncClient], Awaitable[T]]") -> T:
    """Run work with a client and return its result."""
    from khomas.client.async_client import AsyncClient

    async def run() -> T:
        async with AsyncClient() as client:
            return await work(client)

    return asyncio.run(run())


def waiting(text: str) -> Callable[[Command], Command]:
    """Give a command the options --wait and --timeout; `text` says for what it waits."""

    def decorate(command: Command) -> Command:
        return click.option("--wait", is_flag=True, help=text)(limited(command))

    return decorate


def limited(command: Command) -> Command:
    """Give a command that waits the option --timeout, in seconds or None."""
    text = "Give up waiting after this time: 30m. Leaves with 124."
    return click.option("--timeout", metavar="TIME", callback=_seconds, help=text)(command)


def _seconds(_context: click.Context, _option: click.Parameter, given: str | None) -> float | None:
    from khomas.client.units import duration

    return duration(given, "--timeout").total_seconds() if given else None


class Progress:
    """A bar on a terminal, nothing elsewhere; of bytes, and of files where their number is known."""

    def __init__(self, what: str, total: int, files: int = 0) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._files = files
        self._files_done = 0
        self._bar: Any = None
        self._task: Any = None
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        if self._terminal:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            columns = (
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._described(), total=self._total)
        return self

    def __call__(self, length: int) -> None:
        """Count bytes."""
        self._done += length
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def files(self, number: int) -> None:
        """Count files."""
        self._files_done += number
        if self._bar is not None:
            self._bar.update(self._task, description=self._described())

    def _described(self) -> str:
        return f"{self._what} {self._files_done}/{self._files} files" if self._files else self._what

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class Ticker:
    """A line that is rewritten on a terminal, and printed once a minute elsewhere."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._last = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        """Show the newest line."""
        now = time.monotonic()
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        elif now - self._last >= self._seconds:
            sys.stderr.write(line + "\n")
            self._last = now

    def done(self) -> None:
        """End the rewritten line."""
        if self._terminal:
            sys.stderr.write("\n")
