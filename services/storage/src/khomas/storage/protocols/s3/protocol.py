"""The protocol `s3`: keys with slashes as paths, on servers that check little of what they are told.

A file is visible when its last byte has come, and never before, but what is there already is replaced. So it comes
under a hidden key like everywhere, is verified, and is copied within the server when the key is free.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, timedelta
from typing import Any, Final, TypeVar

from obstore import sign_async

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import (
    Abilities,
    Digest,
    Entry,
    Kind,
    Problem,
    ProtocolFault,
    Remote,
    Room,
    Tape,
    ThirdParty,
)
from khomas.storage.protocols.many import each
from khomas.storage.protocols.s3.answers import digest_in, md5_of, problem_of
from khomas.storage.protocols.s3.archive import Archive
from khomas.storage.protocols.s3.copies import copy
from khomas.storage.protocols.s3.data import get, put
from khomas.storage.protocols.s3.store import Store

Item = TypeVar("Item")
Result = TypeVar("Result")

_PAGE: Final = 1000


class S3Protocol:
    """A StorageElement that is a bucket, or what is below a prefix of one."""

    third_party: ThirdParty | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self.abilities = Abilities(checksums=store.settings.checksums, folders=False)
        self.tape: Tape | None = Archive(store) if store.settings.archived else None

    @property
    def prefix(self) -> str:
        """Return what all keys begin with."""
        return self._store.bucket.prefix

    async def space(self) -> Room:
        """Show that the bucket answers; how much room there is no request tells."""
        await self._list("", 1)
        return Room(None, self._store.settings.total_bytes)

    async def stat(self, paths: Sequence[str]) -> list[Entry | ProtocolFault]:
        """Look at objects."""
        return await self._explained(await self._each(self._stat, paths))

    async def entries(self, folder: str) -> AsyncGenerator[Sequence[Entry], None]:
        """List what is directly below a folder, a page at a time."""
        prefix = self._store.bucket.key(f"{folder}/" if folder else "")
        token, found = "", False
        while True:
            page = await self._list(prefix, _PAGE, token)
            entries = [one for one in self._entries(page) if one.path != folder]
            found = found or bool(entries) or page.get("KeyCount", 0) > 0
            if entries:
                yield entries
            token = page.get("NextContinuationToken", "")
            if not token:
                break
        if folder and not found:
            raise ProtocolFault(Problem.ABSENT, f"nothing lies in {folder}")

    async def checksum(self, paths: Sequence[str], algorithm: Algorithm) -> list[Digest | ProtocolFault]:
        """Ask for what the server has computed, where it is of the whole object."""
        if algorithm not in self.abilities.checksums:
            return [ProtocolFault(Problem.UNSUPPORTED, f"no {algorithm} is told") for _ in paths]
        by = self._md5 if algorithm is Algorithm.MD5 else self._told(algorithm)
        return await self._explained(await self._each(by, paths))

    async def delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Remove objects, many with one request."""
        pages = [paths[start : start + _PAGE] for start in range(0, len(paths), _PAGE)]
        done = [await self._delete(page) for page in pages]
        return [fault for page in done for fault in page]

    async def make_folders(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Do nothing: there are none."""
        return [None for _ in paths]

    async def rename(self, pairs: Sequence[tuple[str, str]]) -> list[ProtocolFault | None]:
        """Copy within the server, where nothing is yet, then delete what was copied."""
        done = await self._each(self._copy, pairs, seconds=None)
        copied = [number for number, fault in enumerate(done) if fault is None]
        for number, fault in zip(copied, await self.delete([pairs[number][0] for number in copied]), strict=True):
            done[number] = fault
        return done

    def get(self, path: str, start: int = 0, size_bytes: int | None = None) -> AsyncGenerator[memoryview, None]:
        """Read an object or a part of it."""
        return get(self._store, self._store.bucket.key(path), start, size_bytes)

    async def put(self, path: str, blocks: AsyncIterator[memoryview], size_bytes: int) -> None:
        """Write an object: a small one at once, a large one in parts."""
        await put(self._store, self._store.bucket.key(path), blocks, size_bytes)

    def local_path(self, path: str) -> None:
        """Return nothing: it is elsewhere."""

    async def lend(self, paths: Sequence[str], lifetime: timedelta) -> list[Remote | ProtocolFault]:
        """Return addresses at which anybody reads these files for a while; they are computed, nobody is asked."""
        if not self._store.settings.presigned:
            return [ProtocolFault(Problem.UNSUPPORTED, "the store is not reached by others")] * len(paths)
        keys = [self._store.bucket.key(path) for path in paths]
        async with self._store.asking():
            urls = await sign_async(await self._store.objects(), "GET", keys, lifetime)
        return [Remote(url) for url in urls]

    async def close(self) -> None:
        """End all connections."""
        await self._store.close()

    # -------------------------------------------------------------------------------------------- single ones

    async def _head(self, path: str) -> Any:
        async with self._store.asking():
            return await (await self._store.objects()).head_async(self._store.bucket.key(path))

    async def _stat(self, path: str) -> Entry:
        found = await self._head(path)
        return Entry(path, Kind.FILE, found["size"], found["last_modified"])

    async def _md5(self, path: str) -> Digest:
        found = await self._head(path)
        value = md5_of(found["e_tag"])
        if value is None:
            raise ProtocolFault(Problem.UNSUPPORTED, f"the ETag of {path} is no MD5")
        return Digest(Algorithm.MD5, value, found["size"])

    def _told(self, algorithm: Algorithm) -> Callable[[str], Awaitable[Digest]]:
        async def told(path: str) -> Digest:
            async with self._store.asking():
                client = await self._store.client()
                found = await client.head_object(
                    Bucket=self._store.bucket.name, Key=self._store.bucket.key(path), ChecksumMode="ENABLED"
                )
            value = digest_in(found, algorithm)
            if value is None:
                raise ProtocolFault(Problem.UNSUPPORTED, f"no {algorithm} of {path} is told")
            return Digest(algorithm, value, found["ContentLength"])

        return told

    async def _copy(self, pair: tuple[str, str]) -> None:
        source, target = pair
        found, there = await self._each(self._stat, pair)
        if not isinstance(found, Entry):
            raise await self._meant(found)
        if isinstance(there, Entry):
            raise ProtocolFault(Problem.TAKEN, f"there is a {target} already")
        if there.problem is not Problem.ABSENT:
            raise there
        async with self._store.asking():
            await copy(self._store, source, target, found.size_bytes)

    async def _delete(self, paths: Sequence[str]) -> list[ProtocolFault | None]:
        keys = [self._store.bucket.key(path) for path in paths]
        try:
            async with self._store.asking():
                client = await self._store.client()
                answer = await client.delete_objects(
                    Bucket=self._store.bucket.name, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
                )
        except ProtocolFault as fault:
            return [fault] * len(paths)
        wrong = {one["Key"]: one for one in answer.get("Errors", ())}
        return [_deleted(wrong.get(key)) for key in keys]

    # ------------------------------------------------------------------------------------------------ listings

    async def _list(self, prefix: str, number: int, token: str = "") -> dict[str, Any]:
        more = {"ContinuationToken": token} if token else {}
        async with self._store.asking():
            client = await self._store.client()
            page: dict[str, Any] = await client.list_objects_v2(
                Bucket=self._store.bucket.name, Prefix=prefix, Delimiter="/", MaxKeys=number, **more
            )
            return page

    def _entries(self, page: dict[str, Any]) -> list[Entry]:
        path = self._store.bucket.path
        files = [
            Entry(path(one["Key"]), Kind.FILE, one["Size"], one["LastModified"].astimezone(UTC))
            for one in page.get("Contents", ())
            # What some programs put there to show a folder.
            if not one["Key"].endswith("/")
        ]
        return files + [Entry(path(one["Prefix"]).rstrip("/"), Kind.FOLDER) for one in page.get("CommonPrefixes", ())]

    # -------------------------------------------------------------------- what an answer without words meant

    async def _explained(self, results: "list[Result | ProtocolFault]") -> "list[Result | ProtocolFault]":
        """Find out whether what seems absent or refused is so: HEAD has no words for a missing bucket or a bad key."""
        vague = (Problem.ABSENT, Problem.REFUSED)
        first = next((one for one in results if isinstance(one, ProtocolFault) and one.problem in vague), None)
        if first is None:
            return results
        better = await self._meant(first)
        if better is first:
            return results
        return [better if isinstance(one, ProtocolFault) and one.problem in vague else one for one in results]

    async def _meant(self, fault: ProtocolFault) -> ProtocolFault:
        try:
            await self._list(self._store.bucket.prefix, 1)
        except ProtocolFault as told:
            # Who may read may not always list.
            if told.problem in (Problem.CREDENTIAL, Problem.UNREACHABLE, Problem.CONFIGURATION):
                return told
        return fault

    async def _each(
        self, action: Callable[[Item], Awaitable[Result]], items: Sequence[Item], seconds: float | None = -1
    ) -> list[Result | ProtocolFault]:
        settings = self._store.settings
        limit = settings.seconds if seconds is not None else 86_400.0
        return await each(action, items, at_once=settings.requests, seconds=limit)


def _deleted(wrong: dict[str, Any] | None) -> ProtocolFault | None:
    if wrong is None or wrong.get("Code") == "NoSuchKey":
        return None
    words = f"{wrong.get('Code', '')} {wrong.get('Message', '')}".strip()
    return ProtocolFault(problem_of(0, wrong.get("Code", "")), words)
