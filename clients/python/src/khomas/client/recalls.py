"""Files that are brought from tape to disk."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from khomas.client.errors import UsageError
from khomas.client.parts import chunks, merged
from khomas.client.services import Calls
from khomas.client.specs import dataset_name

_AREA = "storage.recall"
# So many fit into one filter.
_NAMED = 100
_UNDER_WAY = (1, 2)


class Recalls(Calls):
    """Recalls from tape."""

    async def create(
        self,
        names: Sequence[str] = (),
        *,
        dataset: str = "",
        storage_element: str = "",
        lifetime: timedelta | None = None,
        origin: str = "",
    ) -> list[Any]:
        """Want files, or those of a dataset that are on tape, on disk for so long; returns RecallResults."""
        from khomas.api.storage.v1 import recall_service_pb2 as pb

        if bool(names) == bool(dataset):
            raise UsageError("name files, or one dataset")
        results: list[Any] = []
        for part in chunks(names or await self._members(dataset)):
            request = pb.BatchCreateRecallsRequest(files=part, storage_element=storage_element, origin=origin)
            if lifetime is not None:
                request.pin_lifetime.FromTimedelta(lifetime)
            results += (await self.call(_AREA, "BatchCreateRecalls", request)).results
        return [result for result in results if names or result.HasField("recall")]

    async def _members(self, dataset: str) -> list[str]:
        from khomas.api.catalog.v1 import catalog_service_pb2 as pb

        request = pb.ListFilesRequest(dataset=dataset_name(dataset), view=pb.FILE_VIEW_BASIC)
        pages = self._connection.stream("catalog", "StreamFiles", request)
        return [file.name async for answer in pages for file in answer.files]

    async def all(self, filter_text: str = "") -> list[Any]:
        """Search recalls, the newest first."""
        from khomas.api.storage.v1 import recall_service_pb2 as pb

        request = pb.ListRecallsRequest(filter=filter_text, page_size=1000)
        return await self.pages(_AREA, "ListRecalls", request, "recalls")

    async def get(self, name: str) -> Any:
        """Read a recall, given by name or id."""
        from khomas.api.storage.v1 import recall_service_pb2 as pb

        return await self.call(_AREA, "GetRecall", pb.GetRecallRequest(name=_full(name)))

    async def cancel(self, names: Sequence[str]) -> Any:
        """Want files on disk no more. Returns the response message with its counts."""
        from khomas.api.storage.v1 import recall_service_pb2 as pb

        if not names:
            raise UsageError("name at least one recall")
        requests = [pb.BatchCancelRecallsRequest(names=part) for part in chunks(list(map(_full, names)))]
        return merged([await self.call(_AREA, "BatchCancelRecalls", request) for request in requests])

    async def explain(self, name: str) -> Any:
        """Say why a recall waits or failed."""
        from khomas.api.storage.v1 import recall_service_pb2 as pb

        return await self.call(_AREA, "ExplainRecall", pb.ExplainRecallRequest(name=_full(name)))

    async def wait(
        self,
        names: Sequence[str],
        *,
        timeout: float | None = None,
        on_look: Callable[[list[Any]], None] | None = None,
    ) -> list[Any]:
        """Wait until all are on disk, or will not come."""

        async def read() -> list[Any]:
            found: list[Any] = []
            for part in chunks(list(map(_full, names)), _NAMED):
                wanted = " OR ".join(f'uid = "{name.removeprefix("recalls/")}"' for name in part)
                found += await self.all(wanted)
            return found

        found: list[Any] = await self.until(
            read, lambda seen: all(one.state not in _UNDER_WAY for one in seen), timeout=timeout, on_look=on_look
        )
        return found


def _full(name: str) -> str:
    return name if name.startswith("recalls/") else f"recalls/{name}"
