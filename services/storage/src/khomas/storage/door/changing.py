"""Changing the tree: PUT, DELETE, MKCOL, MOVE, COPY. What our catalogue has stays as it is, whoever asks."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from khomas.kit.auth.principal import Principal
from khomas.storage.checksums import Algorithm
from khomas.storage.door import disk, third_party
from khomas.storage.door.asking import CREATE, MODIFY, READ, Place, place_of, require
from khomas.storage.door.catalogued import Catalogued
from khomas.storage.door.digests import Hashes, announced, headers_of
from khomas.storage.door.disk import Seen
from khomas.storage.door.receiving import discarded, receive
from khomas.storage.door.refusal import Refusal, no_folder, taken
from khomas.storage.door.tree import Tree
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.errors import PathNotFound

T = TypeVar("T")

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Changing:
    """Writes files and folders."""

    def __init__(
        self,
        tree: Tree,
        protocols: Protocols,
        catalogued: Catalogued,
        copies: third_party.Copies,
        executor: Executor,
        public_url: str,
        *,
        flush: bool,
    ) -> None:
        self._tree = tree
        self._protocols = protocols
        self._catalogued = catalogued
        self._copies = copies
        self._executor = executor
        self._public = urlsplit(public_url)
        self._flush = flush

    async def put(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Take a file: under a hidden name until all of it is there and as announced."""
        require(principal, place, CREATE)
        if place.slash or not place.path:
            raise Refusal(409, "FOLDER", "A folder is made with MKCOL.")
        if (
            hdrs.CONTENT_RANGE in request.headers
            or request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity"
        ):
            raise Refusal(400, "PART", "Only whole files are taken, as they are.")
        root, target, over = await self._target(request, principal, place)
        if request.headers.get("If-None-Match", "").strip() == "*" and over:
            raise taken(place.path)
        await self._check_space(place, request.content_length or 0)
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            # Not before: what is refused need not be sent.
            await request.writer.write(_CONTINUE)
        expected = announced(request.headers)
        hashes, hidden = Hashes(expected), await self._run(partial(disk.hidden, root))
        async with discarded(hidden):
            await receive(request.content, hidden, hashes.add, self._executor, flush=self._flush)
            hashes.compare(expected)
            await self._publish(hidden, target, over)
        return web.Response(status=204 if over else 201, headers=headers_of(Algorithm.ADLER32, hashes.adler32))

    async def make_folder(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Make one folder."""
        require(principal, place.as_folder, CREATE)
        if request.body_exists:
            raise Refusal(415, "BODY", "MKCOL has no body.")
        if not place.path:
            raise Refusal(405, "EXISTS", "It is there already.")
        target = self._local(await self._writable(place, new=True), place)
        await self._catalogued.names(target)
        await self._run(partial(disk.make_folder, target))
        return web.Response(status=201)

    async def delete(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Remove a file, or a folder with all that is in it; with Depth 0 only an empty one."""
        seen = await self._seen(principal, place, MODIFY)
        found = [seen] if request.headers.get("Depth") == "0" else await self._run(partial(disk.tree, seen))
        await self._catalogued.refuse(seen.path)
        await self._run(partial(disk.remove, found))
        return web.Response(status=204)

    async def move(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Give a file or folder another name on the same StorageElement."""
        seen = await self._seen(principal, place, MODIFY)
        goal = self._goal(request)
        if goal is None or goal.element != place.element:
            raise Refusal(502, "ELSEWHERE", "Files are moved within one StorageElement only; COPY, then DELETE.")
        _, target, over = await self._goal_target(request, principal, place, goal)
        found = await self._run(partial(disk.tree, seen))
        await self._catalogued.refuse(seen.path)
        if over and not over[0].folder and not seen.folder:
            await self._run(partial(disk.publish, seen.path, target, over[0], flush=self._flush))
        else:
            await self._run(partial(disk.remove, over))
            await self._run(partial(disk.move, found, target, flush=self._flush))
        return web.Response(status=204 if over else 201)

    async def copy(self, request: web.Request, principal: Principal, place: Place) -> web.StreamResponse:
        """Copy within the tree, or from or to another storage."""
        if source := request.headers.get("Source"):
            return await self._pull(request, principal, place, source)
        goal = self._goal(request)
        if goal is None:
            return await self._push(request, principal, place, request.headers["Destination"])
        require(principal, place, READ)
        element = await self._tree.element(place)
        seen = await self._existing(element, place)
        root, target, over = await self._goal_target(request, principal, place, goal)
        found = [seen] if request.headers.get("Depth") == "0" else await self._run(partial(disk.tree, seen))
        require(principal, place.as_folder if seen.folder else place, READ)
        if over and not over[0].folder and not seen.folder:
            await self._run(partial(disk.copy_over, seen, target, over[0], root, flush=self._flush))
        else:
            await self._run(partial(disk.remove, over))
            await self._run(partial(disk.copy, found, target, root, flush=self._flush))
        return web.Response(status=204 if over else 201)

    async def _publish(self, hidden: Path, target: Path, over: Sequence[Seen]) -> None:
        if over:
            # It was a long time to come, and what was there may have been adopted meanwhile.
            await self._catalogued.refuse(target)
        await self._run(partial(disk.publish, hidden, target, over[0] if over else None, flush=self._flush))

    # ----------------------------------------------------------------------------------------- third parties

    async def _pull(self, request: web.Request, principal: Principal, place: Place, source: str) -> web.StreamResponse:
        self._copies.check(source)
        require(principal, place, CREATE)
        root, target, over = await self._target(request, principal, place)
        progress, hidden = third_party.Progress(), await self._run(partial(disk.hidden, root))

        async def work() -> None:
            async with discarded(hidden):
                await self._copies.fetch(request, source, hidden, progress, flush=self._flush)
                await self._publish(hidden, target, over)

        return await third_party.followed(request, work(), progress)

    async def _push(
        self, request: web.Request, principal: Principal, place: Place, destination: str
    ) -> web.StreamResponse:
        self._copies.check(destination)
        require(principal, place, READ)
        element = await self._tree.element(place)
        seen = await self._existing(element, place)
        if seen.folder or not seen.plain:
            raise Refusal(403, "FOLDER", "Only files are sent elsewhere.")
        progress, protocol = third_party.Progress(), self._protocols.of(element)
        work = self._copies.send(request, destination, lambda: protocol.get(place.path), seen.stamp[2], progress)
        return await third_party.followed(request, work, progress)

    # ----------------------------------------------------------------------------------------------- places

    def _goal(self, request: web.Request) -> Place | None:
        """Return the place that the header Destination names; None if it is of another server."""
        destination = request.headers.get("Destination", "")
        parts = urlsplit(destination)
        if not destination or parts.fragment or parts.query:
            raise Refusal(400, "DESTINATION", "The header Destination is missing, or has more than a path.")
        # Whoever stands in front of us may speak HTTPS, so the scheme says nothing.
        if parts.netloc and parts.netloc not in (request.host, self._public.netloc):
            return None
        return place_of(parts.path.removeprefix(self._public.path.rstrip("/")))

    async def _goal_target(
        self, request: web.Request, principal: Principal, place: Place, goal: Place
    ) -> tuple[Path, Path, Sequence[Seen]]:
        if not goal.path:
            raise Refusal(403, "ROOT", "The root of a StorageElement stays as it is.")
        if goal.element == place.element and f"{goal.path}/".startswith(f"{place.path}/"):
            raise Refusal(403, "ITSELF", "Nothing is copied or moved into itself.")
        if goal.element == place.element and f"{place.path}/".startswith(f"{goal.path}/"):
            raise Refusal(409, "ITSELF", "The destination holds the source.")
        require(principal, goal, CREATE)
        return await self._target(request, principal, goal)

    async def _target(
        self, request: web.Request, principal: Principal, place: Place
    ) -> tuple[Path, Path, Sequence[Seen]]:
        """Return the root, where something new goes, and all that is there and may be overwritten."""
        element = await self._writable(place, new=True)
        target = self._local(element, place)
        await self._catalogued.names(target)
        top = await self._run(partial(disk.look, target))
        if top is None and not await self._run(target.parent.is_dir):
            raise no_folder(place.path)
        over: Sequence[Seen] = ()
        if top is not None:
            if request.headers.get("Overwrite", "T").upper() == "F":
                raise taken(place.path)
            require(principal, place.as_folder if top.folder else place, MODIFY)
            if top.folder and request.method == hdrs.METH_PUT:
                raise Refusal(409, "FOLDER", f"{place.path} is a folder.")
            over = await self._run(partial(disk.tree, top))
            await self._catalogued.refuse(target)
        return self._local(element, Place(place.element)), target, over

    async def _seen(self, principal: Principal, place: Place, capability: str) -> Seen:
        require(principal, place, capability)
        if not place.path:
            raise Refusal(403, "ROOT", "The root of a StorageElement stays as it is.")
        seen = await self._existing(await self._writable(place, new=False), place)
        if seen.folder:
            require(principal, place.as_folder, capability)
        return seen

    async def _existing(self, element: Element, place: Place) -> Seen:
        # Whoever reads over a link must end inside the root, and not in what is private.
        await self._catalogued.refuse_private(await self._run(partial(self._protocols.local, element, place.path)))
        seen = await self._run(partial(disk.look, self._local(element, place)))
        if seen is None or (place.slash and not seen.folder):
            raise PathNotFound(storage_element=place.element, path=place.path)
        return seen

    async def _writable(self, place: Place, *, new: bool) -> Element:
        if not place.element:
            raise Refusal(403, "ROOT", "StorageElements are made with khomas se create.")
        element = await self._tree.element(place)
        if element.read_only or (new and not element.takes_files):
            raise Refusal(403, "READ_ONLY", f"The StorageElement {element.id} takes nothing.")
        return element

    def _local(self, element: Element, place: Place) -> Path:
        return self._protocols.local(element, "").resolve() / place.path

    async def _check_space(self, place: Place, size_bytes: int) -> None:
        room = await self._protocols.room(await self._tree.element(place))
        if room.free_bytes is not None and room.free_bytes < size_bytes:
            raise Refusal(507, "NO_SPACE", f"{room.free_bytes} bytes are free, {size_bytes} are needed.")

    async def _run(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action)
