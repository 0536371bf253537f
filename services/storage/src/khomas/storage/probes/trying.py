"""Writes, reads, compares and deletes a small file; or copies one to another storage."""

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from khomas.kit.ids import new_uid
from khomas.storage.checksums import Algorithm, new_hash
from khomas.storage.landing import Landings, Wanted
from khomas.storage.paths import PRIVATE
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol
from khomas.storage.transfers.copying import Copy, CopyFailed

FOLDER: Final = f"{PRIVATE}/probes"
_BYTES: Final = 4096
_COPY_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Tried:
    """How a probe went; without a failed step it went well."""

    failed_step: str = ""
    message: str = ""
    elapsed_seconds: float = 0.0
    bytes_per_second: float = 0.0


class _Failed(Exception):
    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.message = message


async def one(protocol: StorageProtocol, *, writes: bool) -> Tried:
    """Try one storage; one that is only read is only looked at."""
    began = time.monotonic()
    try:
        if not writes:
            await _step("read", _look(protocol))
        else:
            async with _file(protocol, _BYTES) as (path, content):
                _compare(await _step("read", _content(protocol, path)), content)
            await _step("delete", _gone(protocol, path))
    except _Failed as failure:
        return Tried(failure.step, failure.message, time.monotonic() - began)
    return Tried(elapsed_seconds=time.monotonic() - began)


async def way(source: StorageProtocol, destination: StorageProtocol, landings: Landings) -> Tried:
    """Copy a small file from one to the other; it is never visible there."""
    began = time.monotonic()
    try:
        async with _file(source, _COPY_BYTES) as (path, content):
            checksum = new_hash(Algorithm.ADLER32)
            checksum.update(memoryview(content))
            copy, started = Copy(Wanted(len(content), checksum.hexdigest())), time.monotonic()
            try:
                async with await landings.begin(destination) as landing:
                    await copy.run(source, path, landing)
            except (CopyFailed, ProtocolFault) as failure:
                raise _Failed("copy", failure.message) from failure
            rate = len(content) / max(time.monotonic() - started, 1e-6)
    except _Failed as failure:
        return Tried(failure.step, failure.message, time.monotonic() - began)
    return Tried(elapsed_seconds=time.monotonic() - began, bytes_per_second=rate)


def _compare(found: bytes, content: bytes) -> None:
    if found != content:
        raise _Failed("compare", f"{len(found)} other bytes came back than the {len(content)} written")


@asynccontextmanager
async def _file(protocol: StorageProtocol, size_bytes: int) -> AsyncIterator[tuple[str, bytes]]:
    """Write a small file of random bytes, and see to it that nothing of it stays."""
    path, content = f"{FOLDER}/{new_uid()}", os.urandom(size_bytes)
    try:
        await _step("write", _written(protocol, path, content))
        yield path, content
    finally:
        (fault,) = await protocol.delete([path])
    if fault is not None:
        raise _Failed("delete", fault.message)


async def _step(name: str, action: Awaitable[bytes]) -> bytes:
    try:
        return await action
    except ProtocolFault as fault:
        raise _Failed(name, fault.message) from fault


async def _written(protocol: StorageProtocol, path: str, content: bytes) -> bytes:
    (fault,) = await protocol.make_folders([FOLDER])
    if fault is not None:
        raise fault
    await protocol.put(path, _blocks(content), len(content))
    return b""


async def _blocks(content: bytes) -> AsyncGenerator[memoryview, None]:
    yield memoryview(content)


async def _content(protocol: StorageProtocol, path: str) -> bytes:
    async with aclosing(protocol.get(path)) as blocks:
        return b"".join([bytes(block) async for block in blocks])


async def _gone(protocol: StorageProtocol, path: str) -> bytes:
    (entry,) = await protocol.stat([path])
    if not (isinstance(entry, ProtocolFault) and entry.problem is Problem.ABSENT):
        raise entry if isinstance(entry, ProtocolFault) else ProtocolFault(Problem.PASSING, "it is still there")
    return b""


async def _look(protocol: StorageProtocol) -> bytes:
    await protocol.space()
    async with aclosing(protocol.entries("")) as pages:
        async for _ in pages:
            break
    return b""
