"""Transfers under way, and the links that carry them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from khomas.client.parts import chunks
from khomas.client.services import Calls

_FINAL_FROM = 20
# So many fit into one filter.
_NAMED = 100
_PAUSE_SECONDS = 1.0


class Links(Calls):
    """What moves between StorageElements."""

    async def all(self, source: str = "", destination: str = "") -> Any:
        """Read links and their bounds; returns the response message with `links` and `limits`."""
        from khomas.api.storage.v1 import link_service_pb2 as pb

        request = pb.ListLinksRequest(source=source, destination=destination)
        return await self.call("storage.link", "ListLinks", request)

    async def set_limit(self, source: str = "", destination: str = "", *, max_streams: int, max_rate: int) -> Any:
        """Bound the streams and the bytes a second between two ends; without any of them the bound is removed."""
        from khomas.api.storage.v1 import link_service_pb2 as pb
        from khomas.api.storage.v1.link_pb2 import LinkLimit

        limit = LinkLimit(source=source, destination=destination, max_streams=max_streams, max_rate=max_rate)
        return await self.call("storage.link", "SetLinkLimit", pb.SetLinkLimitRequest(limit=limit))

    async def transfers(self, names: Sequence[str]) -> list[Any]:
        """Read transfers by name, as they are now."""
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        found: list[Any] = []
        for part in chunks(names, _NAMED):
            wanted = " OR ".join(f'uid = "{name.removeprefix("transfers/")}"' for name in part)
            request = pb.ListTransfersRequest(filter=wanted, page_size=1000)
            found += await self.pages("storage", "ListTransfers", request, "transfers")
        return found

    async def wait(self, names: Sequence[str], on_look: Callable[[Sequence[Any]], None] | None = None) -> list[Any]:
        """Wait until transfers are final, looking once a second."""
        ended: dict[str, Any] = {}
        while True:
            left = [name for name in names if name not in ended]
            found = await self.transfers(left)
            ended |= {one.name: one for one in found if one.state >= _FINAL_FROM}
            if on_look is not None:
                on_look([*ended.values(), *(one for one in found if one.name not in ended)])
            if len(ended) == len(set(names)):
                return [ended[name] for name in names]
            await asyncio.sleep(_PAUSE_SECONDS)
