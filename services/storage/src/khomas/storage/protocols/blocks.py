"""Blocks on their way from one storage to another. They stay as they are: who sends one keeps it while that lasts."""

from collections.abc import AsyncIterator


def as_bytes(block: memoryview) -> bytes:
    """Return a block for a library that takes nothing else; a copy only of a part of something larger."""
    owner = block.obj
    return owner if isinstance(owner, bytes) and len(owner) == len(block) else bytes(block)


async def whole(blocks: AsyncIterator[memoryview]) -> bytes:
    """Return all bytes of a small file."""
    return b"".join([as_bytes(block) async for block in blocks])
