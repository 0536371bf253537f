"""Objects in an archive: restored to disk for some days."""

import math
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from botocore.exceptions import ClientError

from khomas.storage.protocols.interface import Locality, Problem, ProtocolFault, Recall, Recalling
from khomas.storage.protocols.many import each
from khomas.storage.protocols.s3.store import Store

# S3 has no requests for many objects, and gives single ones no name.
REQUEST: Final = "restore"
_ARCHIVES: Final = ("GLACIER", "DEEP_ARCHIVE")
_ONGOING = re.compile(r'ongoing-request="true"')


class Archive:
    """Recalls by RestoreObject."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def locality(self, paths: Sequence[str]) -> list[Locality | ProtocolFault]:
        """Tell where the bytes are."""
        return await self._each(self._locality, paths)

    async def stage(self, paths: Sequence[str], lifetime: timedelta) -> list[str | ProtocolFault]:
        """Ask for copies on disk that last so many days, and longer if they are there already."""
        days = max(1, math.ceil(lifetime / timedelta(days=1)))

        async def stage(path: str) -> str:
            await self._restore(path, days)
            return REQUEST

        return await self._each(stage, paths)

    async def staging(self, request: str, paths: Sequence[str]) -> list[Recalling | ProtocolFault]:
        """Tell how far they are."""
        return await self._each(self._staging, paths)

    async def cancel(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Refuse: what was asked for comes, and goes again after its days."""
        return [ProtocolFault(Problem.UNSUPPORTED, "S3 takes back no restoration") for _ in paths]

    async def release(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Do nothing: copies go after their days."""
        return [None for _ in paths]

    async def _locality(self, path: str) -> Locality:
        head = await self._head(path)
        if head.get("StorageClass") not in _ARCHIVES:
            return Locality.DISK
        return Locality.BOTH if _restored(head) else Locality.TAPE

    async def _staging(self, path: str) -> Recalling:
        head = await self._head(path)
        if head.get("StorageClass") not in _ARCHIVES or _restored(head):
            return Recalling(Recall.DONE)
        return Recalling(Recall.RUNNING if head.get("Restore") else Recall.UNKNOWN)

    async def _restore(self, path: str, days: int) -> None:
        wanted = {"Days": days, "GlacierJobParameters": {"Tier": self._store.settings.restore_tier}}
        if await self._locality(path) is Locality.DISK:
            return
        async with self._store.asking():
            client = await self._store.client()
            try:
                await client.restore_object(**self._where(path), RestoreRequest=wanted)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "RestoreAlreadyInProgress":
                    raise

    async def _head(self, path: str) -> dict[str, Any]:
        async with self._store.asking():
            client = await self._store.client()
            found: dict[str, Any] = await client.head_object(**self._where(path))
            return found

    def _where(self, path: str) -> dict[str, str]:
        return {"Bucket": self._store.bucket.name, "Key": self._store.bucket.key(path)}

    async def _each(self, action: Any, paths: Sequence[str]) -> list[Any]:
        settings = self._store.settings
        return await each(action, paths, at_once=settings.requests, seconds=settings.seconds)


def _restored(head: dict[str, Any]) -> bool:
    told = str(head.get("Restore") or "")
    return bool(told) and not _ONGOING.search(told)
