"""Files: put, get, find, delete, metadata, datasets, adoption."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from khomas.client.bytes_moving import Progress, nothing
from khomas.client.checksums import KnownChecksums
from khomas.client.comparing import Comparing
from khomas.client.connection import Connection
from khomas.client.downloads import Downloads
from khomas.client.errors import KhomasError, UsageError, from_status
from khomas.client.pairs import Pair, below
from khomas.client.parts import chunks
from khomas.client.specs import dataset_name
from khomas.client.uploads import Uploads, Wish
from khomas.client.values import as_value, plain_value
from khomas.client.workers import first_failure

__all__ = ["DATASETS", "Files", "Pair", "as_value", "below", "nothing", "plain_value"]

DATASETS = "datasets/"


class Files:
    """What a client does with files."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        known = KnownChecksums()
        self.comparing = Comparing(connection, known)
        self._uploads = Uploads(connection, known)
        self._downloads = Downloads(connection, known)

    async def put(
        self,
        pairs: Sequence[Pair],
        *,
        storage_elements: Sequence[str] = (),
        datasets: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        replaced: Collection[str] = (),
        reason: str = "",
        progress: Progress = nothing,
        on_files: Progress = nothing,
    ) -> list[Any]:
        """Bring files in; all of a chunk are in the catalogue together, or none. Returns CommittedFile messages.

        `replaced` are names of other files, which are deleted for good for this `reason` once all bytes have arrived.
        """
        wish = Wish(storage_elements, datasets, metadata or {}, replaced, reason)
        return await self._uploads.put(pairs, wish, progress, on_files)

    async def get(
        self,
        pairs: Sequence[Pair],
        *,
        overwrite: bool = False,
        progress: Progress = nothing,
        on_files: Progress = nothing,
    ) -> list[Path]:
        """Fetch files; each is complete and has its checksum, or is absent.

        A part that an earlier try left is gone on with. Raises for the first that failed, after all were tried.
        """
        taken = [pair.path for pair in pairs if pair.path.exists()]
        if taken and not overwrite:
            raise UsageError(f"{taken[0]} exists; give another place, --skip-same or --overwrite")
        failures = await self.fetch(pairs, progress=progress, on_files=on_files)
        if (failure := first_failure(list(failures.values()))) is not None:
            more = f"; {len(failures) - 1} more failed" if len(failures) > 1 else ""
            raise KhomasError(f"{failure}{more}", failure.reason, exit_code=failure.exit_code)
        return [pair.path for pair in pairs]

    async def fetch(
        self, pairs: Sequence[Pair], *, progress: Progress = nothing, on_files: Progress = nothing
    ) -> dict[Pair, KhomasError]:
        """Fetch files, over those that are there; returns what went wrong with which."""
        return await self._downloads.get(pairs, progress, on_files)

    async def find(
        self, directory: str = "", *, filter_text: str = "", dataset: str = "", order_by: str = "", as_of: Any = None
    ) -> AsyncIterator[Any]:
        """Search files, without limit; yields File messages."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListFilesRequest(
            directory=directory, filter=filter_text, dataset=dataset_name(dataset), order_by=order_by
        )
        if as_of is not None:
            request.as_of_time.FromDatetime(as_of)
        async for answer in self._connection.stream("catalog", "StreamFiles", request):
            for file in answer.files:
                yield file

    async def stat(self, names: Sequence[str]) -> list[Any]:
        """Read files by name; raises for the first that does not exist."""
        found = []
        for result in await self._looked_up(names):
            if not result.HasField("file"):
                raise from_status(result.error)
            found.append(result.file)
        return found

    async def addresses(self, names: Sequence[str], lifetime: timedelta) -> list[Any]:
        """Return, for each file, an AccessGrant whose url alone is the right to read it; raises for the first without.

        The services may give them a shorter life; `expire_time` tells.
        """
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        found = []
        for part in chunks(names):
            request = pb.BatchCreateDownloadsRequest(names=part, in_url=True)
            request.lifetime.FromTimedelta(lifetime)
            for download in (await self._connection.call("storage", "BatchCreateDownloads", request)).downloads:
                if download.HasField("error"):
                    raise from_status(download.error)
                found.append(download.grants[0])
        return found

    async def known(self, names: Sequence[str]) -> list[Any]:
        """Read those of the files that exist, by name."""
        return [result.file for result in await self._looked_up(names) if result.HasField("file")]

    async def _looked_up(self, names: Sequence[str]) -> list[Any]:
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        found: list[Any] = []
        for part in chunks(names):
            answer = await self._connection.call("catalog", "BatchGetFiles", pb.BatchGetFilesRequest(names=part))
            found += answer.results
        return found

    async def list_directory(self, directory: str) -> list[Any]:
        """List what lies directly in a directory."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListDirectoryRequest(directory=directory, page_size=10_000)
        entries: list[Any] = []
        while True:
            answer = await self._connection.call("catalog", "ListDirectory", request)
            entries += answer.entries
            if not answer.next_page_token:
                return entries
            request.page_token = answer.next_page_token

    async def delete(self, names: Sequence[str], reason: str, *, force: bool = False) -> list[Any]:
        """Mark files as wanted gone."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        gone: list[Any] = []
        for part in chunks(names):
            request = pb.BatchDeleteFilesRequest(names=part, reason=reason, force=force, request_id=str(uuid4()))
            gone += (await self._connection.call("catalog", "BatchDeleteFiles", request)).files
        return gone

    async def undelete(self, names: Sequence[str]) -> list[Any]:
        """Take deletions back."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        back: list[Any] = []
        for part in chunks(names):
            request = pb.BatchUndeleteFilesRequest(names=part, request_id=str(uuid4()))
            back += (await self._connection.call("catalog", "BatchUndeleteFiles", request)).files
        return back

    async def set_metadata(self, names: Sequence[str], values: Mapping[str, Any], remove: Sequence[str] = ()) -> int:
        """Set and remove metadata of files; returns how many changed."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        changed = 0
        for part in chunks(names):
            request = pb.BatchUpdateMetadataRequest(request_id=str(uuid4()))
            for name in part:
                one = request.updates.add(name=name, remove=remove)
                for key, value in values.items():
                    one.set[key].CopyFrom(as_value(value))
            changed += (await self._connection.call("catalog", "BatchUpdateMetadata", request)).changed
        return changed

    async def adopt(self, adoption: Any, *, validate_only: bool = False) -> Any:
        """Start the adoption of a tree."""
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.CreateAdoptionRequest(adoption=adoption, validate_only=validate_only, request_id=str(uuid4()))
        return await self._connection.call("catalog", "CreateAdoption", request)
