"""The protocols `gsiftp` and `srm`, as gfal2 speaks them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from khomas.kit.credentials import CredentialProvider
from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.gfal.process import TRIES, Died, Helper
from khomas.storage.protocols.interface import (
    Abilities,
    Access,
    Digest,
    Entry,
    Kind,
    Plugin,
    Problem,
    ProtocolFault,
    Remote,
    Room,
    Tape,
)

_PIECE: Final = 1024 * 1024
_NAMES: Final = {
    Algorithm.ADLER32: "ADLER32",
    Algorithm.MD5: "MD5",
    Algorithm.SHA256: "SHA256",
    Algorithm.CRC32: "CRC32",
}
_DIGITS: Final = {Algorithm.ADLER32: 8, Algorithm.MD5: 32, Algorithm.SHA256: 64, Algorithm.CRC32: 8}
_SCHEMES: Final = ("gsiftp", "srm")


class GfalSettings(BaseModel):
    """Options of an access point."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # A Python that has gfal2.
    python: str = "/usr/bin/python3"
    # Folder with hashed certificates of authorities; empty = that of the system.
    authorities: Path | None = None
    # Names asked for, and files moved, at the same time.
    connections: int = Field(default=8, gt=0, le=100)
    # For one request about names; bulk requests have more of it.
    seconds: float = Field(default=120.0, gt=0)
    # Without any byte while bytes move.
    idle_seconds: float = Field(default=120.0, gt=0)
    checksum_seconds: float = Field(default=1800.0, gt=0)
    # For one copy from server to server.
    copy_seconds: int = Field(default=6 * 3600, gt=0)


class GfalProtocol:
    """A StorageElement behind a server of the grid."""

    abilities = Abilities(checksums=(Algorithm.ADLER32, Algorithm.MD5, Algorithm.SHA256))
    tape: Tape | None = None

    def __init__(self, root: str, settings: GfalSettings, credential: CredentialProvider | None) -> None:
        self._root = root
        self._settings = settings
        self._credential = credential
        self._helper = Helper(settings.python, settings.connections, self._environment())
        self.third_party = GridCopies(self)

    async def space(self) -> Room:
        """Show that it answers; it tells no space."""
        (found,) = await self.stat([""])
        if isinstance(found, ProtocolFault):
            raise found
        return Room(None, None)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at files and folders."""
        found = await self._bulk("stat", [[self.url(path)] for path in paths])
        return [
            one if isinstance(one, ProtocolFault) else _entry(path, one) for path, one in zip(paths, found, strict=True)
        ]

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List a folder."""
        await self._let_in()
        prefix = f"{folder}/" if folder else ""
        (itself,) = await self.stat([folder])
        if isinstance(itself, ProtocolFault):
            raise itself
        if itself.kind is not Kind.FOLDER:
            raise ProtocolFault(Problem.TAKEN, f"{folder} is no folder")
        async with aclosing(self._helper.pages("list", [self.url(folder)], self._settings.seconds)) as pages:
            async for page in pages:
                if page:
                    yield [_entry(prefix + name, found) for name, *found in page]

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask the server to compute."""
        items = [[self.url(path), _NAMES[algorithm]] for path in paths]
        found = await self._bulk("checksum", items, self._settings.checksum_seconds)
        return [
            one if isinstance(one, ProtocolFault) else Digest(algorithm, one.lower().zfill(_DIGITS[algorithm]))
            for one in found
        ]

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Delete files."""
        done = await self._bulk("unlink", [[self.url(path)] for path in paths])
        return [None if _is(one, Problem.ABSENT) else one for one in done]

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Make folders and those above them."""
        wanted = list(dict.fromkeys(paths))
        done = dict(zip(wanted, await self._bulk("mkdir", [[self.url(path)] for path in wanted]), strict=True))
        # Two who make one folder meet, and where there is a file gfal2 says that it has made a folder: look.
        for path, found in zip(wanted, await self.stat(wanted), strict=True):
            if isinstance(found, Entry):
                taken = ProtocolFault(Problem.TAKEN, f"{path} is no folder")
                done[path] = None if found.kind is Kind.FOLDER else taken
            else:
                done[path] = done[path] or found
        return [done[path] for path in paths]

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Rename; the server would overwrite, and says little of what is missing, so both are looked at first."""
        looks = await self.stat([path for pair in pairs for path in pair])
        results: list[ProtocolFault | None] = []
        free: list[int] = []
        for number, (source, target) in enumerate(zip(looks[::2], looks[1::2], strict=True)):
            results.append(_hindrance(source, target, pairs[number][1]))
            if results[-1] is None:
                free.append(number)
        items = [[self.url(pairs[number][0]), self.url(pairs[number][1])] for number in free]
        for number, fault in zip(free, await self._bulk("rename", items), strict=True):
            results[number] = await self._renamed(*pairs[number]) if isinstance(fault, Died) else fault
        return results

    async def _renamed(self, source: str, target: str) -> ProtocolFault | None:
        """Look whether a rename was done whose answer was lost."""
        before, after = await self.stat([source, target])
        return None if _is(before, Problem.ABSENT) and isinstance(after, Entry) else Died()

    async def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read."""
        (entry,) = await self.stat([path])
        if isinstance(entry, ProtocolFault):
            raise entry
        if entry.kind is not Kind.FILE:
            raise ProtocolFault(Problem.ABSENT, f"{path} is no file")
        left = max(0, entry.size_bytes - start)
        left = left if size_bytes is None else min(left, size_bytes)
        if not left:
            return
        end = start + left
        for again in reversed(range(TRIES)):
            whole = start == 0 and end == entry.size_bytes
            try:
                async with aclosing(self._read(path, start, end - start, whole=whole)) as pieces:
                    async for piece in pieces:
                        start += len(piece)
                        yield piece
            except Died:
                if not again:
                    raise
            else:
                return

    async def _read(self, path: str, start: int, left: int, *, whole: bool) -> AsyncGenerator[memoryview, None]:
        items = [self.url(path), start, None if whole else left]
        async with self._helper.flow("get", items, self._settings.idle_seconds) as flow:
            reader, _ = await flow.streams()
            while left:
                piece = await self._within(reader.read(min(_PIECE, left)))
                if not piece:
                    break
                left -= len(piece)
                yield memoryview(piece)
            if left:
                await flow.end()
                raise ProtocolFault(Problem.PASSING, f"the transfer ended {left} bytes too early")

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write; whatever the server says only in the end counts."""
        if (odd := _unlistable(path)) is not None:
            raise odd
        await self._let_in()
        async with self._helper.flow("put", [self.url(path), size_bytes], self._settings.idle_seconds) as flow:
            _, writer = await flow.streams()
            try:
                async for block in blocks:
                    writer.write(block)
                    await self._within(writer.drain())
            except ConnectionError:
                await flow.end()
                raise ProtocolFault(Problem.PASSING, "gfal2 takes no more bytes") from None
            except BaseException:
                # What has arrived is deleted by the caller, and must not come after that.
                writer.transport.abort()
                with suppress(ProtocolFault):
                    await flow.end()
                raise
            await flow.end()

    def local_path(self, path: str) -> None:
        """Return nothing: it is elsewhere."""

    async def close(self) -> None:
        """End the process."""
        await self._helper.close()

    def url(self, path: str) -> str:
        """Return the address of a path; the library takes away one quoting."""
        return self._root + quote(path, safe="/") if path else self._root.rstrip("/")

    async def copied(self, source: str, target: str) -> AsyncGenerator[int, None]:
        """Let servers copy."""
        await self._let_in()
        seconds = self._settings.copy_seconds
        async with aclosing(self._helper.pages("copy", [source, target, seconds], seconds + 60.0)) as pages:
            async for (moved,) in pages:
                yield moved

    async def _bulk(self, do: str, items: list[list[Any]], seconds: float | None = None) -> list[Any]:
        # Each of the helper's threads does its share.
        rounds = -(-len(items) // self._settings.connections)
        try:
            await self._let_in()
            return await self._helper.bulk(do, items, (seconds or self._settings.seconds) + rounds)
        except ProtocolFault as fault:
            return [fault for _ in items]

    async def _within(self, action: Any) -> Any:
        try:
            async with asyncio.timeout(self._settings.idle_seconds):
                return await action
        except TimeoutError:
            await self._helper.retire()
            raise ProtocolFault(Problem.PASSING, f"no byte for {self._settings.idle_seconds:g} s") from None

    async def _let_in(self) -> None:
        """Look at the credential first: the library tells little of one that has expired."""
        if self._credential is None:
            return
        known = await asyncio.to_thread(self._credential.status)
        if not known.usable(datetime.now(UTC)):
            trouble = known.trouble or "it is not valid now"
            message = f"credential {self._credential.name}: {trouble}. {known.remedy}".rstrip()
            raise ProtocolFault(Problem.CREDENTIAL, message)

    def _environment(self) -> dict[str, str]:
        environment = dict(self._credential.environment()) if self._credential is not None else {}
        if self._settings.authorities is not None:
            environment["X509_CERT_DIR"] = str(self._settings.authorities)
        return environment


class GridCopies:
    """Copies of the family "gsiftp": data goes from server to server, the commands come from us."""

    family = "gsiftp"

    def __init__(self, protocol: GfalProtocol) -> None:
        self._protocol = protocol

    async def remote(self, path: str, *, write: bool) -> Remote:
        """Return the address; both servers know the same person."""
        return Remote(self._protocol.url(path))

    async def pull(self, source: Remote, path: str) -> AsyncGenerator[int, None]:
        """Copy from elsewhere."""
        async for moved in self._copied(source.url, self._protocol.url(path), other_first=True):
            yield moved

    async def push(self, path: str, target: Remote) -> AsyncGenerator[int, None]:
        """Copy to elsewhere."""
        async for moved in self._copied(self._protocol.url(path), target.url, other_first=False):
            yield moved

    async def _copied(self, source: str, target: str, *, other_first: bool) -> AsyncGenerator[int, None]:
        try:
            async with aclosing(self._protocol.copied(source, target)) as marks:
                async for moved in marks:
                    yield moved
        except ProtocolFault as fault:
            # gfal2 says on which side it was, or which file.
            at_source = "source" in fault.message.lower()[:40] or unquote(urlsplit(source).path) in fault.message
            raise ProtocolFault(fault.problem, fault.message, other_end=at_source is other_first) from fault


def _is(result: object, problem: Problem) -> bool:
    return isinstance(result, ProtocolFault) and result.problem is problem


def _unlistable(path: str) -> ProtocolFault | None:
    """Refuse names that listings of GridFTP would tell wrongly."""
    if any(name.endswith(" ") for name in path.split("/")):
        return ProtocolFault(Problem.REFUSED, f"listings drop the blank at the end of {path!r}")
    return None


def _hindrance(source: Entry | ProtocolFault, target: Entry | ProtocolFault, path: str) -> ProtocolFault | None:
    if isinstance(source, ProtocolFault):
        return source
    if (odd := _unlistable(path)) is not None:
        return odd
    if isinstance(target, Entry):
        return ProtocolFault(Problem.TAKEN, f"there is a {path} already")
    return None if target.problem is Problem.ABSENT else target


def _entry(path: str, found: Sequence[Any]) -> Entry:
    kind = Kind(found[0])
    size_bytes = int(found[1]) if kind is Kind.FILE else 0
    return Entry(path, kind, size_bytes, datetime.fromtimestamp(found[2], UTC))


def _open(access: Access) -> GfalProtocol:
    parts = urlsplit(access.address)
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.username:
        raise ValueError(f"the address is gsiftp://host:port/folder or srm://host:port/folder, not {access.address}")
    try:
        settings = GfalSettings.model_validate(dict(access.options))
    except ValidationError as error:
        wrong = "; ".join(f"option {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(wrong) from None
    root = f"{parts.scheme}://{parts.netloc}{quote(parts.path.rstrip('/'), safe='/')}/"
    return GfalProtocol(root, settings, access.credential)


plugin = Plugin(open=_open)
