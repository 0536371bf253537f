"""Backend "local": jobs on this machine, run by a small fork server over a spool folder."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from khomas.scheduler.backends.interface import (
    BackendPlugin,
    Capabilities,
    Chunk,
    ComputeResource,
    NotSupportedError,
    Observation,
    Outcome,
    PollResult,
    RenderedScript,
    Seen,
    State,
    SubmitItem,
    SubmitOutcome,
    Submitted,
    Usage,
)
from khomas.scheduler.backends.journal import final, observed, running, usage_of, usage_so_far
from khomas.scheduler.backends.script import render_script
from khomas.scheduler.wrapper import LOCAL_RUNNER, khomas_job

_START_SECONDS = 10.0
_CHUNK_BYTES = 1 << 20


def _default_path() -> str:
    """Programs beside this interpreter, then the system's."""
    return os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Where the local backend keeps its jobs and how much of this machine they get."""

    spool: Path
    # Thousandths of a core. None = all cores.
    cpu_milli: int | None = None
    # None = all memory.
    memory_bytes: int | None = None
    # PATH of jobs that do not inherit the environment.
    path: str = field(default_factory=_default_path)


class LocalBackend:
    """Jobs on this machine. The spool folder is the truth; the runner that works on it is started when needed."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        kind="local",
        max_batch=10_000,
        min_poll_interval=timedelta(milliseconds=20),
        incremental_poll=True,
        peek=True,
        live_usage=True,
        shared_folder=True,
    )

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings
        self._spool = settings.spool.absolute()
        self._orders = 0

    def render(self, items: Sequence[SubmitItem]) -> list[RenderedScript]:
        """Say what submit would hand over, as a script that runs the job in a folder of its own."""
        return [render_script(item.token, self._manifest(item)) for item in items]

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Write one file for all; it is durable when this returns."""
        refused = {item.token: why for item in items if (why := _refusal(item))}
        orders = [{"op": "submit", "manifest": self._manifest(item)} for item in items if item.token not in refused]
        if orders:
            await asyncio.to_thread(self._order, orders)
        return [
            SubmitOutcome(item.token, Submitted.REJECTED, message=refused[item.token])
            if item.token in refused
            else SubmitOutcome(item.token, Submitted.ACCEPTED, native_id=item.token)
            for item in items
        ]

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Look for job folders and for orders that were not taken yet."""
        return await asyncio.to_thread(self._find, tokens)

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """Read what the journal got since the cursor, or without one each job folder."""
        return await asyncio.to_thread(self._poll, ids, cursor, measure)

    async def cancel(self, ids: Sequence[str], grace: timedelta) -> list[Outcome]:
        """Order the end of jobs; those that have ended or never were stay as they are."""
        seconds = grace.total_seconds()
        await asyncio.to_thread(self._order, [{"op": "cancel", "token": token, "grace_s": seconds} for token in ids])
        return [Outcome(token, done=True) for token in ids]

    async def hold(self, ids: Sequence[str], on: bool) -> list[Outcome]:
        """Refuse: the service holds jobs before it submits them."""
        raise NotSupportedError("the local backend cannot hold jobs")

    async def peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        """Read a piece of the log; at most 1 MiB."""
        return await asyncio.to_thread(self._peek, native_id, stream, offset, limit)

    async def fetch_output(self, native_id: str, location: str, target: str) -> None:
        """Move one output out of the job folder: a rename on the same disk, else a copy."""
        await asyncio.to_thread(shutil.move, self.output_path(native_id, location), target)

    async def purge(self, ids: Sequence[str]) -> list[Outcome]:
        """Delete the folders of jobs that have ended."""
        return await asyncio.to_thread(lambda: [self._purge(token) for token in ids])

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Read usage from the exit records."""
        return await asyncio.to_thread(self._usage, ids)

    async def list_resources(self) -> list[ComputeResource]:
        """Tell cores and memory of this machine and what of them is in use."""
        return [await asyncio.to_thread(self._resource)]

    async def aclose(self) -> None:
        """Do nothing: the runner ends by itself a minute after its last job."""

    def output_path(self, native_id: str, location: str) -> Path:
        """Path of an output on this machine."""
        return _below(self._folder(native_id), location)

    def _folder(self, token: str) -> Path:
        return _below(self._spool / "jobs", token)

    def _manifest(self, item: SubmitItem) -> dict[str, Any]:
        return {"path": self._settings.path, **item.manifest, "token": item.token}

    # ------------------------------------------------------------------------------- orders

    def _order(self, orders: Iterable[Mapping[str, Any]]) -> None:
        """Put a file of orders in, durably, and wake the runner."""
        incoming = self._spool / "incoming"
        incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._orders += 1
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._orders}.jsonl"
        hidden = incoming / f".{name}"
        with hidden.open("w") as stream:
            stream.writelines(json.dumps(order) + "\n" for order in orders)
            stream.flush()
            os.fchmod(stream.fileno(), 0o600)
            os.fsync(stream.fileno())
        hidden.rename(incoming / name)
        self._wake()

    def _wake(self) -> None:
        """Make sure that a runner looks at the spool, starting one if there is none."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._knock():
            self._start_runner()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the local runner does not start; its log is {self._spool / 'runner.log'}")
            time.sleep(0.01)  # one that is about to end still has the lock for a moment

    def _knock(self) -> bool:
        try:
            fifo = os.open(self._spool / "wake", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False  # nobody has it open for reading
        try:
            os.write(fifo, b"\n")
        except BlockingIOError:
            pass  # it has been woken often enough
        finally:
            os.close(fifo)
        return True

    def _start_runner(self) -> None:
        command = [sys.executable, "-E", "-s", str(LOCAL_RUNNER), str(self._spool), "--detach"]
        if self._settings.cpu_milli is not None:
            command += ["--cpu-milli", str(self._settings.cpu_milli)]
        if self._settings.memory_bytes is not None:
            command += ["--memory-bytes", str(self._settings.memory_bytes)]
        subprocess.run(command, check=True, timeout=_START_SECONDS, stdin=subprocess.DEVNULL)

    # --------------------------------------------------------------------------------- look

    def _incoming(self) -> set[str]:
        """Tokens of orders to submit that the runner has not taken yet."""
        found: set[str] = set()
        for path in sorted((self._spool / "incoming").glob("[0-9]*.jsonl")):
            try:
                lines = path.read_text().splitlines()
            except FileNotFoundError:
                continue  # taken just now: the folders are there
            found.update(token for line in lines if (token := _token(line)))
        return found

    def _find(self, tokens: Sequence[str]) -> dict[str, str]:
        incoming = self._incoming()
        return {token: token for token in tokens if token in incoming or (self._folder(token) / "job.json").exists()}

    def _poll(self, ids: Sequence[str], cursor: str, measure: Collection[str]) -> PollResult:
        if ids:
            self._revive()
        # The end of the journal is read before the folders: what happens in between is told twice, not missed.
        number, offset = self._journal_end()
        if cursor:
            changes = self._changes(cursor)
            if changes is not None:
                observations, cursor = changes
                wanted = set(ids)
                return PollResult([seen for seen in observations if seen.token in wanted], True, cursor)
        incoming, measured = self._incoming(), set(measure)
        return PollResult([self._look(token, incoming, token in measured) for token in ids], True, f"{number}:{offset}")

    def _revive(self) -> None:
        """A runner that was killed leaves jobs waiting; the next one goes on with them."""
        if (self._spool / "jobs").exists() and not self._knock():
            self._wake()

    def _journal_end(self) -> tuple[int, int]:
        numbers = [int(path.name.split(".")[1]) for path in self._spool.glob("journal.*.jsonl")]
        if not numbers:
            return 1, 0
        return max(numbers), (self._spool / f"journal.{max(numbers)}.jsonl").stat().st_size

    def _changes(self, cursor: str) -> tuple[list[Observation], str] | None:
        """What the journal got since the cursor; None when that part was thrown away."""
        number, offset = (int(part) for part in cursor.split(":"))
        found: dict[str, Observation] = {}
        while True:
            following = (self._spool / f"journal.{number + 1}.jsonl").exists()
            try:
                with (self._spool / f"journal.{number}.jsonl").open("rb") as stream:
                    stream.seek(offset)
                    data = stream.read()
            except FileNotFoundError:
                return ([], cursor) if cursor == "1:0" and self._journal_end() == (1, 0) else None
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # what a job wrote in the place of its record; the next look at all folders judges it
                found[event["token"]] = observed(event)
            offset += whole
            if not following:
                return list(found.values()), f"{number}:{offset}"
            number, offset = number + 1, 0

    def _look(self, token: str, incoming: set[str], measured: bool = False) -> Observation:
        """What the folder of one job tells."""
        folder = self._folder(token)
        record = _read(folder / "exit.json")
        started = _read(folder / "started") if record is None else None
        if record is None and started is not None:
            if khomas_job.lives(started):
                beat = _read(folder / "heartbeat") if measured else None
                return replace(running(token, started), usage=usage_so_far(started, beat))
            record = _read(folder / "exit.json")  # it may have ended between the two looks
        if record is not None:
            return final(token, record)
        if started is None and (token in incoming or (folder / "job.json").exists()):
            return Observation(token, token, Seen.PRESENT, State.QUEUED)
        return Observation(token, token, Seen.ABSENT)

    def _peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        if stream not in ("stdout", "stderr"):
            raise ValueError(f"no such stream: {stream!r}; there are stdout and stderr")
        try:
            with (self._folder(native_id) / stream).open("rb") as log:
                size = os.fstat(log.fileno()).st_size
                start = max(0, size + offset) if offset < 0 else min(offset, size)
                log.seek(start)
                return Chunk(start, log.read(min(limit, _CHUNK_BYTES)), size)
        except FileNotFoundError:
            return Chunk(0, b"", 0)  # not started yet

    def _purge(self, token: str) -> Outcome:
        folder = self._folder(token)
        # Its order may not have been taken yet: then there is no folder.
        seen = self._look(token, self._incoming())
        if seen.seen is Seen.ABSENT and not folder.exists():
            return Outcome(token, done=True)
        if not seen.state.final:
            return Outcome(token, done=False, message="it has not ended; cancel it first")
        shutil.rmtree(folder)
        return Outcome(token, done=True)

    def _usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        records = {token: _read(self._folder(token) / "exit.json") for token in ids}
        return {token: usage_of(record) for token, record in records.items() if record and "usage" in record}

    def _runner_state(self) -> Mapping[str, int]:
        return _read(self._spool / "runner.json") or {}

    def _resource(self) -> ComputeResource:
        state = self._runner_state() if self._knock() else {}
        cpu = self._settings.cpu_milli or len(os.sched_getaffinity(0)) * 1000
        return ComputeResource(
            queue="",
            cpu_milli=cpu,
            free_cpu_milli=max(0, cpu - state.get("used_cpu_milli", 0)),
            max_memory_bytes=self._settings.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            running_jobs=state.get("running", 0),
            queued_jobs=state.get("queued", 0),
        )


def _refusal(item: SubmitItem) -> str:
    if not item.token or len(item.token) > 64 or not item.token.replace("-", "").isalnum():
        return f"{item.token!r} is no token: 1 to 64 letters, digits and '-'"
    if item.native:
        return f"the local backend has no native options; remove {', '.join(sorted(item.native))}"
    if item.queue:
        return f"the local backend has no queues; remove the queue {item.queue!r}"
    return ""


def _below(root: Path, name: str) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()) or path == root:
        raise ValueError(f"{name!r} leads out of {root}")
    return path


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _token(line: str) -> str:
    """Token of an order to submit, empty for anything else."""
    try:
        order = json.loads(line)
        return str(order["manifest"]["token"])
    except (ValueError, KeyError, TypeError):
        return ""


def open_local(settings: LocalSettings) -> LocalBackend:
    """Open the local backend."""
    return LocalBackend(settings)


plugin = BackendPlugin(name="local", settings=LocalSettings, open=open_local)
