"""Which files a rule is about, as the catalogue tells it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import file_pb2
from khomas.storage.catalog import Catalog

# A listing of the largest dataset that anybody has; each message of it comes within the patience of the channel.
_LISTING_SECONDS = 3600.0
# As many as fit into a filter beside that of the rule.
_NAMES_IN_FILTER = 100


class Membership:
    """Asks the catalogue."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def listed(self, row: Mapping[str, Any]) -> AsyncIterator[Sequence[file_pb2.File]]:
        """Stream the files of a rule with their replicas."""
        request = pb.ListFilesRequest(
            directory=row["directory"], dataset=row["dataset"], filter=row["filter"], view=pb.FILE_VIEW_REPLICAS
        )
        async for answer in self._catalog.stub.StreamFiles(request, timeout=_LISTING_SECONDS):
            yield answer.files

    async def sizes(self, row: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
        """Return the bytes of all files of a rule, and how many of them lie where."""
        total, there = 0, dict[str, int]()
        async for files in self.listed(row):
            for file in files:
                total += file.size_bytes
                for replica in file.replicas:
                    if replica.state == file_pb2.Replica.STATE_AVAILABLE:
                        there[replica.storage_element] = there.get(replica.storage_element, 0) + file.size_bytes
        return total, there

    async def judged(self, row: Mapping[str, Any], names: Sequence[str]) -> tuple[list[file_pb2.File], list[str]]:
        """Return the files among these LFNs that belong to a rule, and the names of the others."""
        if row["filter"]:
            members = await self._matching(row, names)
        else:
            results = await self._catalog.files(names)
            members = [result.file for result in results if not result.HasField("error")]
        found = {file.name for file in members}
        return members, [name for name in names if name not in found]

    async def by_uid(self, uids: Sequence[str]) -> tuple[list[file_pb2.File], list[str], list[str]]:
        """Return files that are there, and the uids of those that are about to go and of those that are gone."""
        results = await self._catalog.files([f"files/{uid}" for uid in uids])
        states = {
            uid: file_pb2.File.STATE_DELETED if result.HasField("error") else result.file.state
            for uid, result in zip(uids, results, strict=True)
        }
        active = [result.file for result in results if states.get(result.file.uid) == file_pb2.File.STATE_ACTIVE]
        leaving = [uid for uid, state in states.items() if state == file_pb2.File.STATE_DELETING]
        return active, leaving, [uid for uid, state in states.items() if state == file_pb2.File.STATE_DELETED]

    async def _matching(self, row: Mapping[str, Any], names: Sequence[str]) -> list[file_pb2.File]:
        """Ask which of these names match the filter of a rule."""
        found: list[file_pb2.File] = []
        by_uid = {result.file.uid for result in await self._catalog.files(names) if not result.HasField("error")}
        uids = sorted(by_uid)
        for start in range(0, len(uids), _NAMES_IN_FILTER):
            these = " OR ".join(f'uid = "{uid}"' for uid in uids[start : start + _NAMES_IN_FILTER])
            request = pb.ListFilesRequest(
                directory=row["directory"], filter=f"({row['filter']}) AND ({these})", view=pb.FILE_VIEW_REPLICAS
            )
            found += (await self._catalog.list_files(request)).files
        return found
