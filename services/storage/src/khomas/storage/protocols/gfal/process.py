"""The process that speaks gfal2: started when it is needed, and anew when it has died or does not answer."""

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from khomas.storage.protocols.gfal.answers import fault_of, results_of
from khomas.storage.protocols.interface import Problem, ProtocolFault

log = logging.getLogger(__name__)

_LINE: Final = 16 * 1024 * 1024
_START_SECONDS: Final = 60.0
_READ_AHEAD: Final = 4 * 1024 * 1024

# What can be asked again when nobody knows whether it was done.
_REPEATABLE: Final = frozenset({"stat", "checksum", "unlink", "mkdir"})
# Of the same request, when the process dies of it.
TRIES: Final = 3
# Two threads that run callbacks, as is its default, take a connection from each other when a transfer is aborted, as
# each range is that does not begin at 0: globus_i_ftp_client_response_callback waits for a lock and finds its target
# released by globus_i_ftp_client_force_close_callback, and the process dies. One thread takes them one by one.
_ENVIRONMENT: Final = {"GLOBUS_CALLBACK_POLLING_THREADS": "1"}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Died(ProtocolFault):
    """The process is gone; another one will be started for the next request."""

    def __init__(self) -> None:
        super().__init__(Problem.PASSING, "the process that speaks gfal2 has died")


class Helper:
    """Sends requests to the process and gives its answers to who waits for them."""

    def __init__(self, python: str, at_once: int, environment: Mapping[str, str]) -> None:
        self._python = python
        self._at_once = at_once
        self._environment = environment
        self._lock = asyncio.Lock()
        self._running: _Running | None = None

    async def bulk(self, do: str, items: list[list[Any]], seconds: float) -> list[Any]:
        """Do the same with many items; return an answer or a fault for each."""
        if not items:
            return []
        for left in reversed(range(TRIES if do in _REPEATABLE else 1)):
            try:
                async with self._asked(do, items) as answers:
                    return results_of((await self._next(answers, seconds))["results"])
            except Died:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def pages(self, do: str, items: list[Any], seconds: float) -> AsyncGenerator[list[Any], None]:
        """Do one thing that tells more than one answer; `seconds` is the patience between two of them."""
        async with self._asked(do, items) as answers:
            while "page" in (answer := await self._next(answers, seconds)):
                yield answer["page"]
            _checked(answer)

    @asynccontextmanager
    async def flow(self, do: str, items: list[Any], seconds: float) -> AsyncIterator["Flow"]:
        """Begin to move bytes."""
        async with self._asked(do, items, data=True) as answers:
            yield Flow(self, answers, seconds)

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            if self._running is not None:
                await self._running.close()
                self._running = None

    async def retire(self) -> None:
        """End a process that does not answer; the next request starts another one."""
        log.warning("gfal.no_answer")
        await self.close()

    async def _next(self, answers: "Answers", seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                return await answers.next()
        except TimeoutError:
            await self.retire()
            raise ProtocolFault(Problem.PASSING, f"gfal2 did not answer within {seconds:g} s") from None

    @asynccontextmanager
    async def _asked(self, do: str, items: list[Any], *, data: bool = False) -> AsyncIterator["Answers"]:
        running = await self._started()
        answers = running.ask(do, items, data=data)
        try:
            yield answers
        finally:
            running.forget(answers)

    async def _started(self) -> "_Running":
        async with self._lock:
            if self._running is None or self._running.dead:
                if self._running is not None:
                    await self._running.close()
                self._running = await _Running.start(self._python, self._at_once, self._environment)
            return self._running


class Answers:
    """What comes for one request."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        # Where its bytes go, when the process has connected.
        self.streams: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()

    async def next(self) -> dict[str, Any]:
        """Wait for one."""
        line = await self.lines.get()
        if line is None:
            raise Died
        return line


class Flow:
    """Bytes of one file on their way."""

    def __init__(self, helper: Helper, answers: Answers, seconds: float) -> None:
        self._helper = helper
        self._answers = answers
        self._seconds = seconds

    async def streams(self) -> Streams:
        """Wait for the process to connect; raise what it could not do."""
        ended = asyncio.ensure_future(self._answers.next())
        try:
            either: list[asyncio.Future[Any]] = [ended, self._answers.streams]
            done, _ = await asyncio.wait(either, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._answers.streams in done:
                return self._answers.streams.result()
            if ended in done:
                _checked(ended.result())
            else:
                await self._helper.retire()
        finally:
            if not ended.done():
                ended.cancel()
            elif not ended.cancelled() and ended.exception() is None and self._answers.streams.done():
                self._answers.lines.put_nowait(ended.result())
        raise ProtocolFault(Problem.PASSING, "gfal2 began no transfer")

    async def end(self) -> int:
        """Return how many bytes have passed; raise how it failed."""
        answer = await self._helper._next(self._answers, self._seconds)  # noqa: SLF001  one module, two sides of it
        return int(_checked(answer))


def _checked(answer: dict[str, Any]) -> Any:
    result = answer.get("result")
    if isinstance(result, dict):
        raise fault_of(result["error"])
    return result


class _Running:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process, folder: "tempfile.TemporaryDirectory[str]") -> None:
        self._process = process
        self._folder = folder
        self._waiting: dict[int, Answers] = {}
        self._number = 0
        self._server: asyncio.Server | None = None
        self._reader: asyncio.Task[None] | None = None
        self.dead = False

    @classmethod
    async def start(cls, python: str, at_once: int, environment: Mapping[str, str]) -> "_Running":
        """Start it; raise CONFIGURATION where it has no gfal2."""
        program = str(files("khomas.storage.protocols.gfal") / "helper.py")
        try:
            process = await asyncio.create_subprocess_exec(
                python, "-I", program, str(at_once),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                limit=_LINE, env={**_clean(os.environ), **_ENVIRONMENT, **environment},
            )  # fmt: skip
        except OSError as error:
            raise ProtocolFault(Problem.CONFIGURATION, f"{python} cannot be started: {error}") from error
        running = cls(process, tempfile.TemporaryDirectory(prefix="khomas-gfal-"))
        await running._begin(python)
        return running

    @property
    def _socket(self) -> str:
        return str(Path(self._folder.name, "data"))

    def ask(self, do: str, items: list[Any], *, data: bool) -> Answers:
        """Send a request."""
        self._number += 1
        answers = self._waiting[self._number] = Answers(self._number)
        request = {"id": self._number, "do": do, "items": [*items, self._socket] if data else items}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return answers

    def forget(self, answers: Answers) -> None:
        """Drop what still comes, and break the way of its bytes."""
        self._waiting.pop(answers.number, None)
        if answers.streams.done() and not answers.streams.cancelled():
            answers.streams.result()[1].transport.abort()
        else:
            answers.streams.cancel()

    async def close(self) -> None:
        """End it at once: what it does is not needed any more."""
        self.dead = True
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        self._folder.cleanup()

    async def _begin(self, python: str) -> None:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                first = await self._process.stdout.readline()
        except TimeoutError:
            first = b""
        if b"ready" not in first:
            await self.close()
            raise ProtocolFault(Problem.CONFIGURATION, f"{python} has no gfal2; install python3-gfal2 and its plug-ins")
        self._server = await asyncio.start_unix_server(self._connected, self._socket, limit=_READ_AHEAD)
        self._reader = asyncio.create_task(self._read(self._process.stdout))

    async def _read(self, lines: asyncio.StreamReader) -> None:
        try:
            async for line in lines:
                answer = json.loads(line)
                if (waiting := self._waiting.get(answer["id"])) is not None:
                    waiting.lines.put_nowait(answer)
        finally:
            self.dead = True
            for waiting in self._waiting.values():
                waiting.lines.put_nowait(None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = self._waiting.get(int(await reader.readline() or b"0"))
        if waiting is None or waiting.streams.done():
            writer.transport.abort()
        else:
            waiting.streams.set_result((reader, writer))


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what is of our own Python."""
    return {name: value for name, value in environment.items() if not name.startswith(("PYTHON", "LD_"))}
