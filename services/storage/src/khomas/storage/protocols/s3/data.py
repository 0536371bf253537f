"""Bytes of objects: whole, in ranges, in parts."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from khomas.storage.protocols.blocks import whole
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.s3.answers import ERRORS, fault_of, ignores_ranges, past_the_end
from khomas.storage.protocols.s3.store import Store

log = logging.getLogger(__name__)

_BLOCK: Final = 1024 * 1024
# AWS takes no more.
_MOST_PARTS: Final = 10_000
_DISCARD_SECONDS: Final = 30.0


async def get(store: Store, key: str, start: int, size_bytes: int | None) -> AsyncGenerator[memoryview, None]:
    """Yield the bytes of an object from `start`."""
    if size_bytes == 0:
        return
    try:
        objects = await store.objects()
        try:
            answer = await objects.get_async(key, options=_wanted(start, size_bytes))
        except Exception as error:
            if past_the_end(error):
                return
            if not ignores_ranges(error):
                raise
            async for block in _leniently(store, key, start, size_bytes):
                yield block
            return
        async for piece in answer.stream(min_chunk_size=_BLOCK):
            yield memoryview(piece)
    except ERRORS as error:
        raise fault_of(error) from error


def _wanted(start: int, size_bytes: int | None) -> Any:
    if size_bytes is not None:
        return {"range": (start, start + size_bytes)}
    return {"range": {"offset": start}} if start else None


async def _leniently(store: Store, key: str, start: int, size_bytes: int | None) -> AsyncGenerator[memoryview, None]:
    """Read a range from a server that sends it, but with the status of the whole."""
    client = await store.client()
    end = "" if size_bytes is None else str(start + size_bytes - 1)
    answer = await client.get_object(Bucket=store.bucket.name, Key=key, Range=f"bytes={start}-{end}")
    async with answer["Body"] as body:
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
            raise ProtocolFault(Problem.UNSUPPORTED, "the server gives no ranges")
        async for piece in body.iter_chunks(_BLOCK):
            yield memoryview(piece)


async def put(store: Store, key: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
    """Write an object of this size."""
    objects = await store.objects()
    settings = store.settings
    try:
        if size_bytes <= settings.part_bytes:
            await objects.put_async(key, await whole(blocks), use_multipart=False)
            return
        await objects.put_async(
            key,
            blocks,
            use_multipart=True,
            chunk_size=max(settings.part_bytes, -(-size_bytes // (_MOST_PARTS - 1))),
            max_concurrency=settings.parts_at_once,
        )
    except BaseException as error:
        if size_bytes > settings.part_bytes:
            await asyncio.shield(_abort(store, key))
        if isinstance(error, ERRORS):
            raise fault_of(error) from error
        raise


async def _abort(store: Store, key: str) -> None:
    """Have the server forget parts of an object that is not to be: they cost as much as one."""
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            client = await store.client()
            found = await client.list_multipart_uploads(Bucket=store.bucket.name, Prefix=key)
            for one in found.get("Uploads", ()):
                if one["Key"] == key:
                    await client.abort_multipart_upload(Bucket=store.bucket.name, Key=key, UploadId=one["UploadId"])
    except (*ERRORS, ProtocolFault) as error:
        log.info("storage.left_behind", extra={"key": key, "error": str(error)})
