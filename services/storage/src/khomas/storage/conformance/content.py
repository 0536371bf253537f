"""What the suites write and read."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from zlib_ng import zlib_ng

from khomas.storage.landing import INCOMING, Landings, Wanted
from khomas.storage.protocols.interface import Entry, Kind, Problem, ProtocolFault, StorageProtocol

MIB = 1 << 20
GIB = 1 << 30
BLOCK = bytes(range(256)) * 4096
NAMES = [
    "plain",
    "with blank",
    " both ends ",
    "Größe-µ",
    "望遠鏡",
    "100%41",
    "half%",
    "q?a=1&b#c",
    "a+b=c;d,e",
    "<xml>&amp;'\"",
    "[bracket]{brace}",
    "back\\slash",
    "colon:at@",
    "-dash",
    "dot.",
    ".hidden",
    "*star*",
    "n" * 200,
]


def content(size: int) -> bytes:
    """Make bytes of which no two megabytes are alike."""
    numbered = (number.to_bytes(8, "big") + BLOCK[8:] for number in range(size // len(BLOCK) + 1))
    return b"".join(numbered)[:size]


def wanted(data: bytes) -> Wanted:
    """Say what must come out."""
    return Wanted(len(data), f"{zlib_ng.adler32(data):08x}")


async def blocks(data: bytes, size: int = MIB) -> AsyncGenerator[memoryview, None]:
    """Yield bytes in blocks."""
    for start in range(0, len(data), size):
        yield memoryview(data)[start : start + size]


async def write(protocol: StorageProtocol, path: str, data: bytes) -> None:
    """Bring a file in as the service does; raises ProtocolFault."""
    async with await Landings().begin(protocol) as landing:
        await landing.take(blocks(data), wanted(data))
        await landing.publish(path)


async def read(protocol: StorageProtocol, path: str, start: int = 0, size_bytes: int | None = None) -> bytes:
    """Get a file back."""
    async with aclosing(protocol.get(path, start, size_bytes)) as stream:
        return b"".join([bytes(block) async for block in stream])


async def listed(protocol: StorageProtocol, folder: str) -> list[Entry]:
    """List a folder."""
    async with aclosing(protocol.entries(folder)) as pages:
        return [entry async for page in pages for entry in page]


async def hidden(protocol: StorageProtocol) -> list[str]:
    """Tell what lies where files are before they have a name."""
    try:
        return [entry.path for entry in await listed(protocol, INCOMING) if entry.kind is Kind.FILE]
    except ProtocolFault as fault:
        if fault.problem is Problem.ABSENT:
            return []
        raise


async def look(protocol: StorageProtocol, path: str) -> Entry | ProtocolFault:
    """Look at one path."""
    (found,) = await protocol.stat([path])
    return found


def problems(results: Sequence[object]) -> list[Problem | None]:
    """Tell what went wrong, item by item."""
    return [result.problem if isinstance(result, ProtocolFault) else None for result in results]
