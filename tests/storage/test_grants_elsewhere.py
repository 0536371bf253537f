"""Files go straight to StorageElements that are elsewhere, and are read from there: by grants, and by jobs."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest
from yarl import URL
from zlib_ng import zlib_ng

from khomas.api.storage.v1 import grant_pb2, storage_element_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import count_statements
from khomas.kit.errors import UpstreamUnavailable
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.conformance.content import blocks
from khomas.storage.elsewhere import Move, place, take_back
from khomas.storage.landing import INCOMING
from khomas.storage.protocols.interface import Entry, Kind, ProtocolFault
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog, own, until
from khomas.storage.uploads.staging import Taken
from tests.backends.conftest import shared_folder
from tests.e2e.installation import Installation
from tests.testbeds import ssh, storages
from tests.testbeds.ssh import Ssh
from tests.testbeds.storages import Store

DATA = b"0123456789" * 300_000
# The one that tells checksums as S3 does, one that tells none over HTTP, one that tells none over ssh.
NAMES = ("s3-rclone", "dav-apache", "sftp")


@pytest.fixture(scope="module")
def stores() -> Iterator[Mapping[str, Store]]:
    """Real servers; whoever stops one starts it again."""
    with storages.running(*NAMES) as running:
        yield running


@pytest.fixture(scope="module")
def sleeper() -> Iterator[Ssh]:
    """An sshd that may be frozen; whoever does that thaws it."""
    with ssh.running(shared_folder("sleeper")) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Site:
    """A storage service with StorageElements on those servers."""

    storage: Storage

    async def stored(self, element: str, name: str, data: bytes) -> pb.CommittedFile:
        """Bring a file all the way in."""
        upload = await self.storage.open(storage_elements=[element])
        status, _ = await self.storage.put(upload, data)
        assert status == 201
        return (await self.storage.commit(self.storage.wanted(upload, name, data))).files[0]

    async def hidden(self, element: str) -> list[str]:
        """Tell what lies there without a name."""
        try:
            pages = self.protocol(element).entries(INCOMING)
            return [entry.path async for page in pages for entry in page if entry.kind is Kind.FILE]
        except ProtocolFault:
            return []

    async def holds(self, element: str, path: str) -> bytes | None:
        """Read a file there, past the service."""
        (entry,) = await self.protocol(element).stat([path])
        if not isinstance(entry, Entry):
            return None
        return b"".join([bytes(block) async for block in self.protocol(element).get(path)])

    async def read(self, grant: grant_pb2.AccessGrant, **headers: str) -> tuple[int, bytes]:
        """Use a grant for reading."""
        url = URL(grant.url, encoded=True)
        async with self.storage.http.get(url, headers={**grant.headers, **headers}) as answer:
            return answer.status, await answer.read()

    def protocol(self, element: str) -> Any:
        """Return how the service reaches it."""
        parts = self.storage.parts
        return next(one for point, one in parts.protocols._open.items() if point[0].credential == element)


@pytest.fixture
async def site(tmp_path: Path, stores: Mapping[str, Store]) -> AsyncIterator[Site]:
    for store in stores.values():
        store.start()
    credentials = {name: dict(store.credential) for name, store in stores.items()}
    settings = {"poll": 0.05, "catalog_deadline": 3, "credentials": credentials}
    catalog = MemoryCatalog()
    async with (
        serve(memory_catalog(catalog), service, state=tmp_path / "state", settings={"storage": settings}) as served,
        aiohttp.ClientSession() as http,
    ):
        stub = StorageServiceStub(served.channel)
        for name, store in stores.items():
            await stub.CreateStorageElement(
                pb.CreateStorageElementRequest(storage_element=described(name, store), request_id=str(uuid4()))
            )
        yield Site(Storage(served, stub, catalog, http, tmp_path / "state/storage/local"))


def described(name: str, store: Store) -> storage_element_pb2.StorageElement:
    """Describe a new folder of a server."""
    media = storage_element_pb2.StorageElement.MEDIA_DISK
    wanted = storage_element_pb2.StorageElement(name=f"storageElements/{name}", media=media)
    wanted.access_points.add(
        protocol=store.protocol, address=store.address, credential=name, options=dict(store.options)
    )
    return wanted


def named(element: str) -> str:
    """Return a name that no other test has."""
    return f"/hess/{element}-{uuid4().hex}/a b%20ü"


@pytest.mark.parametrize("element", NAMES)
async def test_file_goes_straight_there_and_is_read_in_parts(site: Site, element: str) -> None:
    name = named(element)
    upload = await site.storage.open(storage_elements=[element])
    assert upload.grant.local_path == ""
    status, answer = await site.storage.put(upload, DATA)
    assert (status, answer["size_bytes"]) == (201, len(DATA))
    assert await site.holds(element, name[1:]) is None

    committed = (await site.storage.commit(site.storage.wanted(upload, name, DATA))).files[0]

    assert (committed.storage_element, committed.path) == (element, name[1:])
    assert committed.checksums.sha256 == answer["sha256"]
    assert await site.holds(element, name[1:]) == DATA
    assert await site.hidden(element) == []
    for grant in (await site.storage.download(name)).grants:
        assert await site.read(grant) == (200, DATA)
        # One of the stores says 200 to parts.
        assert await site.read(grant, Range="bytes=5-8") in ((206, b"5678"), (200, b"5678"))


async def test_many_files_cost_as_few_statements_as_one(site: Site) -> None:
    upload = await site.storage.open(storage_elements=["s3-rclone"], max_files=50)
    await asyncio.gather(*(site.storage.put(upload, b"x" * index, index) for index in range(50)))
    folder = named("s3-rclone")
    wanted = [site.storage.wanted(upload, f"{folder}/{index}", b"x" * index, index) for index in range(50)]
    with count_statements(site.storage.parts.database, current_call) as statements:
        committed = await site.storage.commit(*wanted)
    assert 0 < len(own(statements)) <= 6, statements
    assert [one.path for one in committed.files] == [one.name[1:] for one in wanted]


async def test_store_lends_addresses_and_the_door_stands_behind(site: Site) -> None:
    name = named("s3-rclone")
    await site.stored("s3-rclone", name, DATA)
    lent, door = (await site.storage.download(name)).grants
    assert "X-Amz-Signature=" in lent.url
    assert not lent.headers
    assert "Authorization" in door.headers
    other = URL(lent.url.replace(name.split("/")[2], "elsewhere"), encoded=True)
    async with site.storage.http.get(other) as answer:
        assert answer.status == 403


@pytest.mark.parametrize("element", NAMES)
async def test_name_that_is_taken_there_is_left_alone(site: Site, element: str) -> None:
    name = named(element)
    await site.stored(element, name, b"first")
    del site.storage.catalog.files[name]

    second = await site.stored(element, name, b"second")

    assert second.path.startswith(f"{name[1:]}~")
    assert await site.holds(element, name[1:]) == b"first"
    assert await site.holds(element, second.path) == b"second"


@pytest.mark.parametrize("element", NAMES)
async def test_what_is_sent_again_replaces_what_was_sent(site: Site, element: str) -> None:
    upload = await site.storage.open(storage_elements=[element])
    await site.storage.put(upload, b"first")
    await site.storage.put(upload, b"second")
    assert len(await site.hidden(element)) == 1
    name = named(element)
    await site.storage.commit(site.storage.wanted(upload, name, b"second"))
    assert await site.holds(element, name[1:]) == b"second"


@pytest.mark.parametrize("element", NAMES)
async def test_what_is_not_as_announced_leaves_nothing(site: Site, element: str) -> None:
    upload = await site.storage.open(storage_elements=[element])
    status, answer = await site.storage.put(upload, b"content", Digest="adler32=00000001")
    assert (status, answer["reason"]) == (422, "CHECKSUM_MISMATCH")
    await site.storage.put(upload, b"content")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.storage.commit(site.storage.wanted(upload, named(element), b"another"))
    assert reason_of(caught.value) == "CHECKSUM_MISMATCH"
    request = pb.BatchAbandonUploadsRequest(names=[upload.name], request_id=str(uuid4()))
    await site.storage.stub.BatchAbandonUploads(request)
    assert await site.hidden(element) == []


async def test_md5_of_an_older_system_is_compared_with_what_lies_there(site: Site) -> None:
    upload = await site.storage.open(storage_elements=["sftp"])
    await site.storage.put(upload, DATA)
    wanted = site.storage.wanted(upload, named("sftp"), DATA)
    wanted.checksums.md5 = "0" * 32
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.storage.commit(wanted)
    assert reason_of(caught.value) == "CHECKSUM_MISMATCH"
    wanted.checksums.md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    assert (await site.storage.commit(wanted)).files[0].checksums.md5 == wanted.checksums.md5


@pytest.mark.parametrize("element", NAMES)
async def test_refused_commit_is_taken_back_and_can_be_done_again(site: Site, element: str) -> None:
    name, other = named(element), named(element)
    await site.stored(element, name, b"first")
    upload = await site.storage.open(storage_elements=[element], max_files=2)
    await site.storage.put(upload, b"second", 0)
    await site.storage.put(upload, b"third", 1)
    wanted = [
        site.storage.wanted(upload, other, b"second"),
        # The catalogue has another file of this name.
        site.storage.wanted(upload, name, b"third", index=1),
    ]
    with pytest.raises(grpc.aio.AioRpcError):
        await site.storage.commit(*wanted)
    assert await site.holds(element, other[1:]) is None
    assert len(await site.hidden(element)) == 2
    await site.storage.commit(wanted[0])
    assert await site.holds(element, other[1:]) == b"second"
    assert await site.hidden(element) == []


def _silent(_: str) -> None:
    raise UpstreamUnavailable(service="catalog")


@pytest.mark.parametrize("element", NAMES)
async def test_commit_goes_on_after_its_process_has_died_with_the_name_given(site: Site, element: str) -> None:
    """The answer of the catalogue is lost, as when the process dies; the names are there already."""
    name = named(element)
    upload = await site.storage.open(storage_elements=[element])
    await site.storage.put(upload, DATA)
    site.storage.catalog.before = _silent
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.storage.commit(site.storage.wanted(upload, name, DATA))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert await site.holds(element, name[1:]) == DATA
    site.storage.catalog.before = lambda _: None

    async def committed() -> bool:
        return (await site.storage.uploads(upload))[0].state == grant_pb2.Upload.STATE_COMMITTED

    await until(committed, 60)
    assert site.storage.catalog.files[name].replicas[0].path == name[1:]
    assert await site.hidden(element) == []


async def test_sender_is_kept_waiting_while_the_storage_takes_its_time(site: Site, sleeper: Ssh) -> None:
    folder = sleeper.folder / "data"
    folder.mkdir()
    os.chown(folder, sleeper.user.pw_uid, sleeper.user.pw_gid)
    options = {"known_hosts": str(sleeper.known_hosts), "key": str(sleeper.key)}
    wanted = described("sleeper", Store(protocol="sftp", address=f"sftp://{sleeper.address}{folder}", options=options))
    wanted.access_points[0].credential = ""
    await site.storage.stub.CreateStorageElement(
        pb.CreateStorageElementRequest(storage_element=wanted, request_id=str(uuid4()))
    )
    upload = await site.storage.open(storage_elements=["sleeper"])
    await site.storage.put(upload, b"before")
    url = URL(f"{upload.grant.url}0")
    reading, writing = await asyncio.open_connection(url.host, url.port)
    sleeper.freeze()
    try:
        lines = [f"PUT {url.raw_path} HTTP/1.1", f"Host: {url.host}", "Content-Length: 5"]
        lines += [f"{name}: {value}" for name, value in upload.grant.headers.items()]
        writing.write("\r\n".join([*lines, "", "bytes"]).encode())
        async with asyncio.timeout(60):
            first = await reading.readuntil(b"\r\n\r\n")
    finally:
        sleeper.thaw()
    async with asyncio.timeout(60):
        while (last := await reading.readuntil(b"\r\n\r\n")) == first:
            pass
    writing.close()
    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert last.startswith(b"HTTP/1.1 201 ")
    await site.storage.commit(site.storage.wanted(upload, "/hess/late", b"bytes"))
    assert (folder / "hess/late").read_bytes() == b"bytes"


@pytest.mark.parametrize("element", NAMES)
async def test_name_given_by_half_is_given_once(site: Site, element: str) -> None:
    """A name that is a copy may be there while the hidden one still is, when a process dies between."""
    name = named(element)
    upload = await site.storage.open(storage_elements=[element])
    await site.storage.put(upload, DATA)
    protocol = site.protocol(element)
    (staged,) = await site.hidden(element)
    assert await protocol.make_folders([name[1:].rpartition("/")[0]]) == [None]
    await protocol.put(name[1:], blocks(DATA), len(DATA))
    move = Move(staged, name[1:], len(DATA), f"{zlib_ng.adler32(DATA):08x}")

    with pytest.raises(Taken):
        await place(protocol, [move], element, again=False)
    await place(protocol, [move], element, again=True)

    assert await site.hidden(element) == []
    await take_back(protocol, [move])
    assert await site.hidden(element) == [staged]
    assert await site.holds(element, name[1:]) is None


async def test_server_that_is_away_is_told_and_the_upload_waits(site: Site, stores: Mapping[str, Store]) -> None:
    name = named("dav-apache")
    upload = await site.storage.open(storage_elements=["dav-apache"])
    await site.storage.put(upload, DATA)
    stores["dav-apache"].stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.storage.commit(site.storage.wanted(upload, name, DATA))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    stores["dav-apache"].start()
    await site.storage.commit(site.storage.wanted(upload, name, DATA))
    assert await site.holds("dav-apache", name[1:]) == DATA


@pytest.fixture(scope="module")
def khomas(tmp_path_factory: pytest.TempPathFactory, stores: Mapping[str, Store]) -> Iterator[Installation]:
    """An installation whose jobs read and write on those servers."""
    for store in stores.values():
        store.start()
    credentials = {name: dict(store.credential) for name, store in stores.items()}
    settings = {"KHOMAS_STORAGE_CREDENTIALS": json.dumps(credentials)}
    installation = Installation(tmp_path_factory.mktemp("khomas"), settings=settings)
    installation.start()
    for name, store in stores.items():
        options = [word for one in store.options.items() for word in ("--option", "=".join(one))]
        installation.run(
            "se", "create", name, store.address, "--protocol", store.protocol, "--credential", name, *options
        )
    yield installation
    installation.stop()


@pytest.mark.parametrize("element", NAMES)
def test_job_reads_and_writes_there(khomas: Installation, tmp_path: Path, element: str) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(DATA)
    khomas.run("put", source, f"/hess/in/{element}", "--se", element)
    document = {
        "run": ["sh", "-c", "tr 0 x < input > result"],
        "inputs": [{"file": f"/hess/in/{element}", "path": "input"}],
        "outputs": [{"glob": "result", "name": f"/hess/out/{element}/{{file}}", "se": [element]}],
    }
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    khomas.submit(tmp_path / "job.yaml")
    (shown,) = khomas.rows("find", f"/hess/out/{element}")
    assert shown["paths"] == [f"{element}:hess/out/{element}/result"]
    khomas.run("get", shown["name"], "--to", back)
    assert (back / "result").read_bytes() == DATA.replace(b"0", b"x")
