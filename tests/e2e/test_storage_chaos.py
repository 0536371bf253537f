"""Services, servers and disks fail at random while files are copied and deleted: nothing is lost, nothing is wrong."""

import asyncio
import json
import os
import random
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from google.protobuf.duration_pb2 import Duration

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.grant_pb2 import Upload
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.api.storage.v1.transfer_pb2 import TRANSFER_REASON_NO_SOURCE, TRANSFER_REASON_SPACE, Transfer
from tests.e2e.apart import Apart, persistently
from tests.testbeds import disks, flipping, storages
from tests.testbeds.flipping import Flipping
from tests.testbeds.storages import Store

SEED = 20261121
# By hand: 1700, 1000, 600.
FILES = int(os.environ.get("KHOMAS_TEST_CHAOS_FILES", "120"))
DELETIONS = int(os.environ.get("KHOMAS_TEST_CHAOS_DELETIONS", "40"))
SECONDS = float(os.environ.get("KHOMAS_TEST_CHAOS_SECONDS", "45"))
COPIES = 3
PATIENCE = 240 + 4 * SECONDS
LARGEST = 400_000
STORES = ("disk", "dav-first", "dav-second", "dav-apache", "root-second", "sftp", "s3-rclone")
SMALL = "small-disk"
FLIPS = 0.03
HIDDEN = "."
# Between two attempts, in seconds.
MAX_PAUSE = 3
SETTINGS = {
    "KHOMAS_STORAGE_TRANSFER_ATTEMPTS": "100",
    "KHOMAS_STORAGE_TRANSFER_PAUSE": "PT0.3S",
    "KHOMAS_STORAGE_MAX_TRANSFER_PAUSE": f"PT{MAX_PAUSE}S",
    "KHOMAS_STORAGE_DELETION_PAUSE": "PT0.5S",
    "KHOMAS_STORAGE_LEASE": "PT10S",
}


@dataclass(slots=True)
class Chaos:
    """Breaks one thing after the other, in a thread of its own, and mends all of them in the end."""

    khomas: Apart
    stores: Mapping[str, Store]
    token: Path
    expired: str
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    done: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Break for a while."""
        deeds: Sequence[Callable[[], None]] = (
            self._kill_catalog,
            self._kill_storage,
            self._stop_a_server,
            self._cut_off_storage,
            self._let_the_token_expire,
        )
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            deed = self.chance.choice(deeds)
            name = deed.__name__.strip("_")
            self.done[name] = self.done.get(name, 0) + 1
            deed()
            self._pause(1.0)

    def _pause(self, longest: float) -> None:
        time.sleep(self.chance.uniform(0.1, longest))

    def _kill_catalog(self) -> None:
        self._killed("catalog")

    def _kill_storage(self) -> None:
        self._killed("storage")

    def _killed(self, area: str) -> None:
        self.khomas.kill(area)
        self._pause(2.0)
        self.khomas.launch(area)

    def _stop_a_server(self) -> None:
        name = self.chance.choice([name for name, store in self.stores.items() if store.server])
        self.stores[name].stop()
        self._pause(3.0)
        self.stores[name].start()

    def _cut_off_storage(self) -> None:
        process = self.khomas.processes["storage"]
        process.send_signal(signal.SIGSTOP)
        self._pause(4.0)
        process.send_signal(signal.SIGCONT)

    def _let_the_token_expire(self) -> None:
        good = self.token.read_text()
        self.token.write_text(self.expired)
        self._pause(3.0)
        self.token.write_text(good)


@dataclass(frozen=True, slots=True)
class Grid:
    """The stores, and the services that know them."""

    khomas: Apart
    stores: Mapping[str, Store]
    # Where the files of each lie here.
    folders: Mapping[str, Path]
    flipping: Flipping
    chaos: Chaos


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with ExitStack() as stack:
        stores = dict(stack.enter_context(storages.running(*STORES)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="khomas-small-")))
        small = stack.enter_context(disks.memory(folder / "disk", 1 << 20))
        stores[SMALL] = Store(protocol="posix", address=str(small), folder=small)
        beds = stores["dav-apache"]
        assert beds.web is not None
        way = stack.enter_context(flipping.running(beds.web, FLIPS, SEED))
        stores["dav-apache"] = replace(beds, address=beds.address.replace(beds.web.address, way.address))
        credentials = {name: dict(store.credential) for name, store in stores.items() if store.credential}
        token, expired = _tokens(stores, tmp_path_factory.mktemp("token"))
        credentials["dav-second"] = {"kind": "bearer", "options": {"file": str(token)}}
        here = tmp_path_factory.mktemp("chaos")
        (here / "local").mkdir()
        settings = {
            **SETTINGS,
            "KHOMAS_STORAGE_CREDENTIALS": json.dumps(credentials),
            "KHOMAS_STORAGE_LOCAL_ROOT": str(here / "local"),
        }
        khomas = Apart(here, ("catalog", "storage"), settings)
        khomas.start()
        stack.callback(khomas.stop)
        folders = {name: store.folder for name, store in stores.items() if store.folder is not None}
        asyncio.run(_known(khomas, stores))
        yield Grid(khomas, stores, {**folders, "local": here / "local"}, way, Chaos(khomas, stores, token, expired))


def _tokens(stores: Mapping[str, Store], folder: Path) -> tuple[Path, str]:
    """A token of our own of the second server, and one whose time is over."""
    store = stores["dav-second"]
    assert store.issuer is not None
    good = folder / "token"
    good.touch(mode=0o600)
    good.write_text(Path(store.credential["options"]["file"]).read_text())
    return good, store.issuer.token("over", "storage.read:/ storage.modify:/", seconds=-60).read_text()


async def _known(khomas: Apart, stores: Mapping[str, Store]) -> None:
    async with services(khomas) as (_, storage):
        for name, store in stores.items():
            request = pb.CreateStorageElementRequest(storage_element=store.element(name), request_id=str(uuid4()))
            await persistently(storage.CreateStorageElement, request)


@asynccontextmanager
async def services(khomas: Apart) -> Any:
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(khomas.channel(area)) for area in ("catalog", "storage")]
        yield CatalogServiceStub(channels[0]), StorageServiceStub(channels[1])


@dataclass(frozen=True, slots=True)
class Left:
    """What there was in the end."""

    sums: Mapping[str, int]
    deleted: frozenset[str]
    files: Mapping[str, File]
    transfers: Sequence[Transfer]


@pytest.fixture(scope="module")
def left(grid: Grid) -> Left:
    """Copy and delete while everything fails, then let it come to rest."""
    return asyncio.run(_lived_through(grid))


async def _lived_through(grid: Grid) -> Left:
    chance = random.Random(SEED)
    async with services(grid.khomas) as (catalog, storage):
        sums = await _stored(storage, chance)
        names = sorted(sums)
        thread = threading.Thread(target=grid.chaos.run)
        thread.start()
        try:
            wanted = [
                Transfer(file=name, destination=destination)
                for name in names
                for destination in chance.sample([*STORES, SMALL], COPIES)
            ]
            chance.shuffle(wanted)
            parts = 10
            made = []
            deleted = chance.sample(names, DELETIONS)
            for number in range(parts):
                made += await _wanted(storage, wanted[number::parts])
                if number >= parts // 2:
                    await _deleted(catalog, deleted[number - parts // 2 :: parts - parts // 2])
                await asyncio.sleep(SECONDS / parts / 2)
        finally:
            await asyncio.to_thread(thread.join)
        grid.khomas.check()
        transfers = await _at_rest(catalog, storage, set(made), set(deleted))
        files = await _files(catalog, sorted(set(names) - set(deleted)))
    return Left(sums, frozenset(deleted), files, transfers)


async def _stored(storage: StorageServiceStub, chance: random.Random) -> dict[str, int]:
    """Bring the files in."""
    contents = {
        f"/hess/{number % 7}/{number}.dat": chance.randbytes(chance.randrange(LARGEST)) for number in range(FILES)
    }
    request = pb.BatchCreateUploadsRequest(uploads=[Upload(max_files=len(contents))], request_id=str(uuid4()))
    (upload,) = (await storage.BatchCreateUploads(request)).uploads
    commit = pb.BatchCommitUploadsRequest(request_id=str(uuid4()))
    async with aiohttp.ClientSession() as http:
        for index, (name, content) in enumerate(contents.items()):
            url = f"{upload.grant.url}{index}"
            async with http.put(url, data=content, headers=dict(upload.grant.headers)) as answer:
                assert answer.status == 201, await answer.text()
            one = commit.files.add(upload=upload.name, index=index, name=name, size_bytes=len(content))
            one.checksums.adler32 = f"{zlib.adler32(content):08x}"
    await storage.BatchCommitUploads(commit)
    return {name: zlib.adler32(content) for name, content in contents.items()}


async def _wanted(storage: StorageServiceStub, wanted: Sequence[Transfer]) -> list[str]:
    request = pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4()))
    answer = await persistently(storage.BatchCreateTransfers, request)
    return [result.transfer.name for result in answer.results if result.HasField("transfer")]


async def _deleted(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    request = catalog_pb.BatchDeleteFilesRequest(
        names=names, reason="not wanted", undo_window=Duration(seconds=1), request_id=str(uuid4())
    )
    await persistently(catalog.BatchDeleteFiles, request)


async def _at_rest(
    catalog: CatalogServiceStub, storage: StorageServiceStub, made: set[str], deleted: set[str]
) -> list[Transfer]:
    """Wait until all transfers and deletions have ended, but for those that a full disk keeps waiting."""
    waiting: set[str] = set()
    looks: list[set[str]] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            transfers = [one for one in await _transfers(storage) if one.name in made]
            ended = {one.name for one in transfers if one.state >= Transfer.STATE_SUCCEEDED}
            # They are tried again all the time, and have no reason meanwhile.
            waiting |= {one.name for one in transfers if _waits_for_room(one)}
            looks = [*looks[-MAX_PAUSE:], ended]
            listed = await persistently(
                catalog.ListFiles, catalog_pb.ListFilesRequest(filter="state = DELETING", page_size=1000)
            )
            if not listed.files and made <= ended | waiting and looks == [ended] * (MAX_PAUSE + 1):
                return [one for one in transfers if one.name in ended]
            await asyncio.sleep(1)


def _waits_for_room(one: Transfer) -> bool:
    """Whether there was no room for it on the small disk when it was last tried."""
    return one.destination == SMALL and (one.reason == TRANSFER_REASON_SPACE or "bytes are free" in one.message)


async def _transfers(storage: StorageServiceStub) -> list[Transfer]:
    found: list[Transfer] = []
    request = pb.ListTransfersRequest(page_size=1000)
    while True:
        answer = await persistently(storage.ListTransfers, request)
        found += answer.transfers
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def _files(catalog: CatalogServiceStub, names: Sequence[str]) -> dict[str, File]:
    request = catalog_pb.BatchGetFilesRequest(names=names)
    answer = await persistently(catalog.BatchGetFiles, request)
    return {result.file.name: result.file for result in answer.results}


@pytest.mark.timeout(2 * PATIENCE)
def test_everything_failed_at_least_once(grid: Grid, left: Left) -> None:
    assert left.files
    assert len(grid.chaos.done) == 5, grid.chaos.done
    assert grid.flipping.flipped > 0


@pytest.mark.timeout(2 * PATIENCE)
def test_every_transfer_ended_or_says_why_not(left: Left) -> None:
    failed = [one for one in left.transfers if one.state != Transfer.STATE_SUCCEEDED]
    assert [
        (one.file, one.destination, one.reason, one.message)
        for one in failed
        if one.file not in left.deleted and not _waits_for_room(one)
    ] == []
    assert {one.reason for one in failed if one.destination != SMALL} <= {TRANSFER_REASON_NO_SOURCE}


@pytest.mark.timeout(2 * PATIENCE)
def test_what_the_catalogue_says_is_there_is_there_and_right(grid: Grid, left: Left) -> None:
    wrong = [
        (name, replica.storage_element)
        for name, file in left.files.items()
        for replica in file.replicas
        if replica.state == Replica.STATE_AVAILABLE
        if _sum(grid.folders[replica.storage_element] / replica.path) != left.sums[name]
    ]
    assert wrong == []


@pytest.mark.timeout(2 * PATIENCE)
def test_no_file_is_lost(left: Left) -> None:
    assert set(left.files) == set(left.sums) - left.deleted
    available = {
        name: [one.storage_element for one in file.replicas if one.state == Replica.STATE_AVAILABLE]
        for name, file in left.files.items()
    }
    assert [name for name, places in available.items() if not places] == []


@pytest.mark.timeout(2 * PATIENCE)
def test_nothing_is_left_that_nobody_knows(grid: Grid, left: Left) -> None:
    # What a process has left behind that died is removed when nobody can be at work on it any more. Meanwhile copies
    # may arrive that waited for room.
    end = time.monotonic() + PATIENCE
    while unknown := set(_visible(grid.folders)) - asyncio.run(_places(grid, sorted(left.files))):
        assert time.monotonic() < end, unknown
        time.sleep(1)


async def _places(grid: Grid, names: Sequence[str]) -> set[tuple[str, str]]:
    """Where the catalogue says that files are."""
    async with services(grid.khomas) as (catalog, _):
        files = await _files(catalog, names)
    return {(replica.storage_element, replica.path) for file in files.values() for replica in file.replicas}


def _visible(folders: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for name, folder in folders.items():
        for path in folder.rglob("*"):
            place = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(HIDDEN) for part in place.parts):
                yield name, str(place)


def _sum(path: Path) -> int | None:
    try:
        return zlib.adler32(path.read_bytes())
    except FileNotFoundError:
        return None
