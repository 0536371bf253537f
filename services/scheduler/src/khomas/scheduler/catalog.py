"""What the scheduler asks the catalogue."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1.value_pb2 import Value

T = TypeVar("T")
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the catalogue."""

    name: str
    size_bytes: int
    # Value of the key that was asked for, as text.
    value: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a file can be read."""

    size_bytes: int
    storage_elements: frozenset[str]


class Catalog:
    """Looks files up, many in a call."""

    def __init__(self, stub: CatalogServiceStub, deadline: float) -> None:
        self._stub = stub
        self._deadline = deadline

    async def find(self, names: Collection[str], key: str = "") -> dict[str, Found]:
        """Those of the files that exist."""
        view = pb.FILE_VIEW_FULL if key else pb.FILE_VIEW_BASIC
        found: dict[str, Found] = {}
        for some in batches(names, _BATCH):
            request = pb.BatchGetFilesRequest(names=some, view=view)
            answer = await self._stub.BatchGetFiles(request, timeout=self._deadline)
            for result in answer.results:
                if result.WhichOneof("result") == "file":
                    found[result.file.name] = _found(result.file, key)
        return found

    async def replicas(self, names: Collection[str]) -> dict[str, Placed]:
        """Where the files that exist can be read."""
        found: dict[str, Placed] = {}
        for some in batches(names, _BATCH):
            request = pb.BatchGetFilesRequest(names=some, view=pb.FILE_VIEW_REPLICAS)
            answer = await self._stub.BatchGetFiles(request, timeout=self._deadline)
            for result in answer.results:
                if result.WhichOneof("result") == "file":
                    found[result.file.name] = _placed(result.file)
        return found

    async def members(self, dataset: str, key: str = "") -> list[Found]:
        """Files of a dataset now, by name."""
        return [one async for one in self._list(pb.ListFilesRequest(dataset=dataset), key)]

    async def search(self, query: str, key: str = "") -> list[Found]:
        """Files that match a search now, by name."""
        return [one async for one in self._list(pb.ListFilesRequest(filter=query), key)]

    async def key_types(self) -> dict[str, int]:
        """Types of the declared metadata keys by id."""
        types: dict[str, int] = {}
        request = pb.ListMetadataKeysRequest()
        while True:
            answer = await self._stub.ListMetadataKeys(request, timeout=self._deadline)
            types |= {key.name.removeprefix("metadataKeys/"): key.type for key in answer.metadata_keys}
            if not answer.next_page_token:
                return types
            request.page_token = answer.next_page_token

    async def _list(self, request: pb.ListFilesRequest, key: str) -> AsyncIterator[Found]:
        request.page_size = _BATCH
        request.view = pb.FILE_VIEW_FULL if key else pb.FILE_VIEW_BASIC
        while True:
            answer = await self._stub.ListFiles(request, timeout=self._deadline)
            for file in answer.files:
                yield _found(file, key)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token
            await asyncio.sleep(0)


def batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    """Cut into lists of at most this size."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _found(file: file_pb2.File, key: str) -> Found:
    return Found(file.name, file.size_bytes, _text(file.metadata[key]) if key in file.metadata else "")


def _placed(file: file_pb2.File) -> Placed:
    # A replica without a state is one that is AVAILABLE.
    good = (file_pb2.Replica.STATE_UNSPECIFIED, file_pb2.Replica.STATE_AVAILABLE)
    return Placed(file.size_bytes, frozenset(one.storage_element for one in file.replicas if one.state in good))


def _text(value: Value) -> str:
    kind = value.WhichOneof("kind")
    if kind is None:
        return ""
    if kind == "time":
        return value.time.ToJsonString()
    content = getattr(value, kind)
    return str(content).lower() if kind == "boolean" else str(content)


def names_of(found: Sequence[Found]) -> list[str]:
    """LFNs."""
    return [one.name for one in found]
