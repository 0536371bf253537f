"""Transfers under way, and the links that carry them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from khomas.client.errors import TIMED_OUT, KhomasError, is_passing
from khomas.client.parts import chunks
from khomas.client.services import Calls

_FINAL_FROM = 20
_WATCHED = 10_000
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
        request = pb.SetLinkLimitRequest(limit=limit, request_id=str(uuid4()))
        return await self.call("storage.link", "SetLinkLimit", request)

    async def read(self, names: Sequence[str]) -> list[Any]:
        """Read transfers by name, as they are now."""
        known: dict[str, Any] = {}
        for part in chunks(list(dict.fromkeys(names)), _WATCHED):
            wanted = len(known) + len(part)
            async with aclosing(self._watched(part)) as answers:
                async for found in answers:
                    known |= found
                    if len(known) == wanted:
                        break
        return [known[name] for name in names]

    async def wait(
        self,
        names: Sequence[str],
        on_look: Callable[[Sequence[Any]], None] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[Any]:
        """Wait until transfers are final; `on_look` gets all that are known whenever some have gone on.

        A service that restarts meanwhile is asked again. Raises KhomasError with exit code 124 at the time-out.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._ended(names, on_look)
        except TimeoutError:
            raise KhomasError(f"not done after {timeout:g} s", "TIMEOUT", exit_code=TIMED_OUT) from None

    async def _ended(self, names: Sequence[str], on_look: Callable[[Sequence[Any]], None] | None) -> list[Any]:
        known: dict[str, Any] = {}
        for part in chunks(list(dict.fromkeys(names)), _WATCHED):
            left = part
            while left:
                try:
                    async for found in self._watched(left):
                        known |= found
                        if on_look is not None:
                            on_look(list(known.values()))
                except KhomasError as error:
                    if not is_passing(error):
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)
                left = [name for name in left if name not in known or known[name].state < _FINAL_FROM]
        return [known[name] for name in names]

    async def _watched(self, names: Sequence[str]) -> AsyncGenerator[dict[str, Any], None]:
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        request = pb.WatchTransfersRequest(names=names)
        async for answer in self._connection.stream("storage", "WatchTransfers", request, quiet_seconds=None):
            yield {one.name: one for one in answer.transfers}
