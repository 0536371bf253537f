"""The asynchronous client: everything by area."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from khomas.client.connection import Connection
from khomas.client.files import Files
from khomas.client.integrity import Integrity
from khomas.client.jobs import JobChange, Jobs, spec_of
from khomas.client.links import Links
from khomas.client.recalls import Recalls
from khomas.client.rules import Placement, Rules
from khomas.client.services import Archive, Bookkeeping, Catalog, Storage
from khomas.client.syncing import Syncing

# Programs that every node has.
_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/opt/")


class AsyncClient:
    """A connection to the services: `async with AsyncClient() as client: await client.files.put(…)`.

    Endpoint and token come from the arguments, else from KHOMAS_ENDPOINT and the WLCG token discovery.
    Nothing is connected before the first call.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.connection = Connection(endpoint, token)
        self.files = Files(self.connection)
        self.syncing = Syncing(self.files)
        self.jobs = Jobs(self.connection)
        self.catalog = Catalog(self.connection)
        self.storage = Storage(self.connection)
        self.integrity = Integrity(self.connection)
        self.links = Links(self.connection)
        self.recalls = Recalls(self.connection)
        self.rules = Rules(self.connection)
        self.placement = Placement(self.connection)
        self.bookkeeping = Bookkeeping(self.connection)
        self.archive = Archive(self.connection)

    async def submit(self, *run: str, **options: Any) -> Any:
        """Submit a program with the keys of a job file as options; returns the Job message."""
        spec, contents = spec_of(document_of(run, options))
        return (await self.jobs.submit([spec], contents)).jobs[0]

    async def submit_many(self, documents: Sequence[Mapping[str, Any]], *, folder: Path | None = None) -> list[Any]:
        """Submit job documents in one call; returns the Job messages in their order.

        Files that the documents name are looked for from `folder`, else from the current one.
        """
        specs, contents = [], {}
        for document in documents:
            spec, files = spec_of(document, folder)
            specs.append(spec)
            contents.update(files)
        return list((await self.jobs.submit(specs, contents)).jobs) if specs else []

    def watch(self, job: Any, cursor: str = "") -> AsyncIterator[JobChange]:
        """Follow the steps of a job given by name or message; goes on by itself after a disconnect."""
        return self.jobs.watch(job if isinstance(job, str) else job.name, cursor)

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def document_of(run: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return a job document for a program and its options; a local program goes along as a file."""
    document = {key: value for key, value in options.items() if value is not None}
    words = [str(word) for word in run]
    if words and words[0].startswith(("./", "/")) and Path(words[0]).is_file() and not words[0].startswith(_SYSTEM):
        document["files"] = [*document.get("files", []), words[0]]
        words[0] = f"./{Path(words[0]).name}"
    if words:
        document["run"] = words
    return document
