"""Reads a file for a copy: goes on where a connection broke, on the same storage or on another that has the file."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from khomas.storage.links.bucket import Throttle
from khomas.storage.protocols.interface import Problem, ProtocolFault, StorageProtocol

log = logging.getLogger(__name__)

# Of a connection that broke: the rest may be read over a new one.
_BROKEN: Final = frozenset({Problem.PASSING, Problem.UNREACHABLE})
_TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Source:
    """One copy that can be read."""

    element: str
    protocol: StorageProtocol
    path: str


class Reading:
    """The bytes of a file in order, whichever of its copies gives them."""

    def __init__(
        self, sources: Sequence[Source], throttle: Throttle | None = None, *, pause_seconds: float = _PAUSE_SECONDS
    ) -> None:
        self.throttle = throttle or Throttle()
        self.position = 0
        # How long the source was waited for, and how long whoever takes the bytes.
        self.read_seconds = 0.0
        self.write_seconds = 0.0
        # What was overcome.
        self.remarks: list[str] = []
        self._left = list(sources)
        self._tries = 0
        self._pause_seconds = pause_seconds

    @property
    def source(self) -> Source:
        """Return the copy that is being read."""
        return self._left[0]

    @property
    def switched(self) -> bool:
        """Tell whether bytes of more than one copy were given."""
        return any(remark.startswith("went on from") for remark in self.remarks)

    async def blocks(self) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes; raises the ProtocolFault of the last copy when no one gives them all."""
        while True:
            begin = self.position
            try:
                async with aclosing(self._blocks()) as blocks:
                    async for block in blocks:
                        yield block
                return
            except ProtocolFault as fault:
                if not await self._overcome(fault, moved=self.position > begin):
                    raise

    async def _blocks(self) -> AsyncGenerator[memoryview, None]:
        source = self.source
        given = source.protocol.get(source.path, self.position) if self.position else source.protocol.get(source.path)
        async with aclosing(given) as blocks:
            while True:
                begin = time.monotonic()
                block = await anext(blocks, None)
                self.read_seconds += time.monotonic() - begin
                if block is None:
                    return
                await self.throttle(len(block))
                begin = time.monotonic()
                size_bytes = len(block)
                yield block
                self.position += size_bytes
                self.write_seconds += time.monotonic() - begin

    async def _overcome(self, fault: ProtocolFault, *, moved: bool) -> bool:
        """Tell whether there is another way to go on, and take it."""
        self._tries = 1 if moved else self._tries + 1
        if fault.problem in _BROKEN and self.position and self._tries <= _TRIES:
            self._note(f"read on at byte {self.position}", fault)
            await asyncio.sleep(self._pause_seconds * 2 ** (self._tries - 1))
            return True
        if len(self._left) == 1:
            return False
        before = self._left.pop(0).element
        self._tries = 0
        self._note(f"{'went on from' if self.position else 'instead of'} {before}", fault)
        return True

    def _note(self, what: str, fault: ProtocolFault) -> None:
        log.info("transfer.overcome", extra={"source": self.source.element, "what": what, "error": fault.message})
        self.remarks.append(f"{what}: {fault.message}")
