"""The blocking client for scripts and notebooks, over the asynchronous one on a private loop."""

import asyncio
import inspect
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from khomas.client.async_client import AsyncClient, document_of
from khomas.client.card import card
from khomas.client.exporting import document_of_job
from khomas.client.jobs import is_final, reason_of, spec_of, state_of
from khomas.client.units import quoted

T = TypeVar("T")


class Client:
    """A connection to the services: `c = Client(); job = c.submit("./a.sh", memory="2 GiB"); job.wait()`.

    `files`, `catalog`, `storage`, `integrity`, `links`, `recalls`, `bookkeeping` and `archive` have the methods of the
    asynchronous client, each blocking until it is done.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="khomas-client", daemon=True)
        self._thread.start()
        self.asynchronous = AsyncClient(endpoint, token)
        self.files = Blocking(self, self.asynchronous.files)
        self.syncing = Blocking(self, self.asynchronous.syncing)
        self.catalog = Blocking(self, self.asynchronous.catalog)
        self.storage = Blocking(self, self.asynchronous.storage)
        self.integrity = Blocking(self, self.asynchronous.integrity)
        self.links = Blocking(self, self.asynchronous.links)
        self.recalls = Blocking(self, self.asynchronous.recalls)
        self.rules = Blocking(self, self.asynchronous.rules)
        self.placement = Blocking(self, self.asynchronous.placement)
        self.bookkeeping = Blocking(self, self.asynchronous.bookkeeping)
        self.archive = Blocking(self, self.asynchronous.archive)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the asynchronous client and return its result."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Go through an asynchronous iterator."""

        async def following() -> tuple[T, ...]:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return ()

        while one := self.run(following()):
            yield one[0]

    def submit(self, *run: str, **options: Any) -> "Job":
        """Submit a program with the keys of a job file as options: `memory="2 GiB", on="local"`."""
        return Job(self, document_of(run, options)).submit()

    def submit_many(self, documents: Sequence[Mapping[str, Any]], *, folder: Path | None = None) -> list["Job"]:
        """Submit job documents in one call: `[{"run": ["fit", str(run)], "wall": "1h"} for run in runs]`."""
        messages = self.run(self.asynchronous.submit_many(documents, folder=folder))
        return [Job(self, dict(document), message) for document, message in zip(documents, messages, strict=True)]

    def wait(self, jobs: Sequence["Job"], timeout: float | None = None) -> list["Job"]:
        """Wait until all are final; they are looked at together."""
        waiting = self.asynchronous.jobs.wait([job.name for job in jobs], timeout=timeout)
        for job, message in zip(jobs, self.run(waiting), strict=True):
            job.message = message
        return list(jobs)

    def job(self, name: str) -> "Job":
        """Return a job by its id."""
        message = self.run(self.asynchronous.jobs.get(name))
        return Job(self, document_of_job(message), message)

    def jobs(self, *, state: str = "", tags: dict[str, Any] | None = None, filter: str = "") -> "JobList":  # noqa: A002
        """Search jobs by state, tags and an AIP-160 filter."""
        terms = [f"state = {state.upper()}"] if state else []
        terms += [f"tags.{key} = {quoted(value)}" for key, value in (tags or {}).items()]
        terms += [f"({filter})"] if filter else []
        return JobList(self, " AND ".join(terms))

    def close(self) -> None:
        """Close the connection and end the loop. Nothing happens the second time."""
        if self._loop.is_closed():
            return
        try:
            self.run(self.asynchronous.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Blocking:
    """The methods of a part of the asynchronous client, each blocking until it is done."""

    def __init__(self, client: Client, part: object) -> None:
        self._client = client
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if inspect.isasyncgenfunction(method):
            return lambda *args, **options: self._client.iterate(method(*args, **options))
        return lambda *args, **options: self._client.run(method(*args, **options))


class Job:
    """A job in a script or notebook: `wait`, `stdout`, `copy`, `cancel`; shows itself as a card."""

    def __init__(self, client: Client, document: dict[str, Any], message: Any = None) -> None:
        self._client = client
        self._document = document
        self.message = message

    def submit(self) -> "Job":
        """Submit it; returns the job itself."""
        spec, contents = spec_of(self._document)
        jobs = self._client.asynchronous.jobs
        self.message = self._client.run(jobs.submit([spec], contents)).jobs[0]
        return self

    @property
    def name(self) -> str:
        """The resource name, "jobs/{uid}"."""
        return str(self.message.name)

    @property
    def id(self) -> str:
        """The uid."""
        return str(self.message.uid)

    @property
    def state(self) -> str:
        """The state as it is now: "RUNNING"."""
        return state_of(self.refresh().message)

    @property
    def reason(self) -> str:
        """Why it waits or failed, "" for nothing."""
        return reason_of(self.refresh().message.status)

    def refresh(self) -> "Job":
        """Read it again."""
        if self.message is not None and not is_final(self.message):
            self.message = self._client.run(self._client.asynchronous.jobs.get(self.name))
        return self

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> "Job":
        """Wait until it is final."""
        look = _Printer() if progress else None
        waiting = self._client.asynchronous.jobs.wait([self.name], timeout=timeout, on_look=look)
        self.message = self._client.run(waiting)[0]
        return self

    def stdout(self) -> str:
        """Return what it printed so far."""
        return self._log("stdout")

    def stderr(self) -> str:
        """Return what it printed as errors so far."""
        return self._log("stderr")

    def _log(self, stream: str) -> str:
        parts = self._client.iterate(self._client.asynchronous.jobs.logs(self.name, stream=stream))
        return b"".join(parts).decode(errors="replace")

    def copy(self, **changes: Any) -> "Job":
        """Return a new job that is not submitted yet, with some keys changed."""
        return Job(self._client, {**self._document, **changes})

    def cancel(self) -> "Job":
        """Want it to end."""
        self._client.run(self._client.asynchronous.jobs.cancel([self.name]))
        return self

    def outputs(self) -> list[Any]:
        """Return the OutputFile messages of its last attempt."""
        return self._client.run(self._client.asynchronous.jobs.outputs(self.name))

    def explain(self) -> Any:
        """Return why it waits or failed."""
        return self._client.run(self._client.asynchronous.jobs.explain(self.name))

    def __repr__(self) -> str:
        if self.message is None:
            return f"<Job {self._document.get('name', '')} not submitted>"
        return f"<Job {self.id} {state_of(self.message)}>"

    def _repr_html_(self) -> str:
        if self.message is None:
            return card(None, self._document, "")
        self.refresh()
        tail = self.stdout()[-2000:] if self.message.status.attempt else ""
        return card(self.message, self._document, tail)


class JobList:
    """The result of a search for jobs; counting is done by the service."""

    def __init__(self, client: Client, filter_text: str) -> None:
        self._client = client
        self._filter = filter_text

    def __iter__(self) -> Iterator[Job]:
        found = self._client.run(self._client.asynchronous.jobs.find(self._filter))
        return (Job(self._client, {}, message) for message in found)

    def __len__(self) -> int:
        return sum(self._client.run(self._client.asynchronous.jobs.count("state", self._filter)).values())

    def by(self, field: str) -> "Groups":
        """Group by state, reason, backend, owner or tags.<key>."""
        return Groups(self._client, self._filter, field)


class Groups:
    """Jobs grouped by a field."""

    def __init__(self, client: Client, filter_text: str, field: str) -> None:
        self._client = client
        self._filter = filter_text
        self._field = field

    def count(self) -> dict[str, int]:
        """Return how many jobs each group has."""
        counts = self._client.run(self._client.asynchronous.jobs.count(self._field, self._filter))
        return dict(Counter(counts).most_common())


class _Printer:
    """Prints a job's state when it changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, jobs: list[Any]) -> None:
        line = ", ".join(state_of(job) for job in jobs)
        if line != self._last:
            sys.stderr.write(line + "\n")
            self._last = line
