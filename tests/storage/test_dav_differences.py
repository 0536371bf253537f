"""What servers of WebDAV do otherwise than the standard says, measured: the reasons for what `davs` never relies on."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.storage.protocols.dav.session import DavSettings, Session
from tests.testbeds.web import WebServer
from tests.testbeds.xrootd import Xrootd


@dataclass(frozen=True, slots=True)
class Ways:
    """What a server answers; and where it is wrong, what is left of the file "abcdef"."""

    put_missing_folder: int
    put_if_none_match: int
    put_content_range: tuple[int, bytes]
    put_wrong_digest: int
    move_no_overwrite: tuple[int, bytes]
    make_folder_without_slash: int
    # Whether a copy to another server ends up in the server itself.
    copy_elsewhere_stays: bool
    digest: str


WAYS = {
    "apache": Ways(409, 412, (204, b"aXXdef"), 204, (412, b"abcdef"), 201, True, ""),
    "nginx": Ways(201, 204, (501, b"abcdef"), 204, (412, b"abcdef"), 409, True, ""),
    "xrootd": Ways(200, 200, (200, b"XX"), 200, (201, b"other"), 201, False, "adler32=081e0256"),
}


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a server, and requests as they are."""

    session: Session

    async def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.answer(method, self.session.url(path), headers=named, data=body, fails=False) as reply:
            await reply.read()
            return reply.status

    async def content(self, path: str) -> bytes:
        async with self.session.answer("GET", self.session.url(path)) as reply:
            return await reply.read()

    async def digest(self, path: str) -> str:
        async with self.session.answer("HEAD", self.session.url(path), headers={"Want-Digest": "adler32"}) as reply:
            return reply.headers.get("Digest", "")


@pytest.fixture(params=list(WAYS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def folder(name: str, request: pytest.FixtureRequest) -> AsyncIterator[Folder]:
    bed: WebServer | Xrootd = request.getfixturevalue(name)
    server = bed.servers[0] if isinstance(bed, Xrootd) else bed
    root = uuid4().hex
    server.open_folder(root)
    settings = DavSettings(authorities=server.authorities)
    credential = BearerToken("test", BearerOptions(file=server.token))
    folder = Folder(Session(f"{server.address}/{root}", settings, credential))
    assert await folder.send("PUT", "file", b"abcdef") in (200, 201)
    yield folder
    await folder.session.close()


async def test_missing_folder_is_made_or_not(name: str, folder: Folder) -> None:
    assert await folder.send("PUT", "missing/file", b"x") == WAYS[name].put_missing_folder


async def test_condition_on_a_put_is_not_heard_by_all(name: str, folder: Folder) -> None:
    assert await folder.send("PUT", "file", b"other", If_None_Match="*") == WAYS[name].put_if_none_match


async def test_part_of_a_file_becomes_the_file(name: str, folder: Folder) -> None:
    status = await folder.send("PUT", "file", b"XX", Content_Range="bytes 1-2/6")
    assert (status, await folder.content("file")) == WAYS[name].put_content_range


async def test_wrong_digest_is_accepted_by_all(name: str, folder: Folder) -> None:
    assert await folder.send("PUT", "file", b"abcdef", Digest="adler32=00000001") == WAYS[name].put_wrong_digest


async def test_promise_to_overwrite_nothing_is_not_kept_by_all(name: str, folder: Folder) -> None:
    await folder.send("PUT", "other", b"other")
    destination = folder.session.destination("file")
    status = await folder.send("MOVE", "other", Destination=destination, Overwrite="F")
    assert (status, await folder.content("file")) == WAYS[name].move_no_overwrite


async def test_folder_needs_a_slash_somewhere(name: str, folder: Folder) -> None:
    assert await folder.send("MKCOL", "folder") == WAYS[name].make_folder_without_slash


async def test_copy_to_another_server_may_stay_at_home(name: str, folder: Folder) -> None:
    elsewhere = f"https://localhost:1{urlsplit(folder.session.url('stray')).path}"
    await folder.send("COPY", "file", Destination=elsewhere, Credential="none")
    stays = await folder.send("HEAD", "stray") == 200
    assert stays == WAYS[name].copy_elsewhere_stays


async def test_digest_is_told_by_one(name: str, folder: Folder) -> None:
    assert await folder.digest("file") == WAYS[name].digest
