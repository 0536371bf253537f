"""All storages behind one service: files go through every ordered pair of them."""

import asyncio
import json
import os
import random
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.transfer_pb2 import Transfer
from khomas.client import AsyncClient
from khomas.client.files import Pair
from tests.e2e.installation import Installation
from tests.testbeds import storages
from tests.testbeds.storages import NAMES, Store

# Files that begin on each store, and the size of the largest one. By hand: 39 and 1 << 30, with KHOMAS_TEST_ON_DISK=1.
FILES = int(os.environ.get("KHOMAS_TEST_PAIR_FILES", "6"))
LARGEST = int(os.environ.get("KHOMAS_TEST_PAIR_LARGEST", str(64 << 20)))
BLOCK = 1 << 20
PATIENCE = 60 + 0.2 * FILES * len(NAMES) ** 2
HIDDEN = "."
PAIRS = [(source, destination) for source in NAMES for destination in NAMES if source != destination]


@pytest.fixture(scope="module")
def stores() -> Iterator[Mapping[str, Store]]:
    with storages.running() as running:
        yield running


@pytest.fixture(scope="module")
def khomas(stores: Mapping[str, Store], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One service with all of them."""
    credentials = {name: store.credential for name, store in stores.items() if store.credential}
    settings = {"KHOMAS_STORAGE_CREDENTIALS": json.dumps(credentials)}
    installation = Installation(tmp_path_factory.mktemp("storages"), settings=settings)
    installation.start()
    asyncio.run(_made_known(installation, stores))
    yield installation
    installation.stop()


async def _made_known(khomas: Installation, stores: Mapping[str, Store]) -> None:
    async with client(khomas) as khomas_client:
        for name, store in stores.items():
            await khomas_client.storage.create_element(store.element(name))


def client(khomas: Installation) -> AsyncClient:
    return AsyncClient(khomas.environment["KHOMAS_ENDPOINT"], khomas.token)


@dataclass(slots=True)
class Watch:
    """Looks into the folders of stores all the time, and notes files that have a name before they are whole."""

    folders: Mapping[str, Path]
    sizes: Mapping[str, int]
    partial: set[str] = field(default_factory=set)
    looks: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until `stop`."""
        while not self._end.wait(0.05):
            self.looks += 1
            for name, folder in self.folders.items():
                for path in folder.rglob("*.dat"):
                    self._look(name, folder, path)

    def _look(self, name: str, folder: Path, path: Path) -> None:
        place = path.relative_to(folder)
        if any(part.startswith(HIDDEN) for part in place.parts):
            return
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return
        if size != self.sizes[f"/{place}"]:
            self.partial.add(f"{name}: {place} has {size} bytes")

    def stop(self) -> None:
        self._end.set()


@dataclass(frozen=True, slots=True)
class Content:
    """A file here."""

    path: Path
    size: int
    adler32: int


Contents = Mapping[str, Mapping[str, Content]]


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of it all."""

    transfers: Mapping[tuple[str, str], Sequence[Transfer]]
    watch: Watch


@pytest.fixture(scope="module")
def moved(khomas: Installation, stores: Mapping[str, Store], contents: Contents) -> Moved:
    """Put each set of files on its store, then copy it from there to all others."""
    sizes = {name: one.size for files in contents.values() for name, one in files.items()}
    watch = Watch({name: store.folder for name, store in stores.items() if store.folder is not None}, sizes)
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        transfers = asyncio.run(_copied(khomas, contents))
    finally:
        watch.stop()
        thread.join()
    return Moved(transfers, watch)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """Files here, by the store that they begin on and their names: empty, tiny, of odd names, one of them large."""
    chance, folder = random.Random(7), tmp_path_factory.mktemp("contents")
    found: dict[str, dict[str, Content]] = {}
    for store in NAMES:
        largest = LARGEST if store == NAMES[0] else LARGEST // 16
        sizes = [0, 1, 1000, largest, *(int((LARGEST // 16) ** chance.random()) for _ in range(FILES - 4))]
        names = [f"/hess/{store}/run {number} é%25.dat" for number in range(FILES)]
        found[store] = {
            name: _written(folder / name[1:], size, chance) for name, size in zip(names, sizes, strict=True)
        }
    return found


def _written(path: Path, size: int, chance: random.Random) -> Content:
    path.parent.mkdir(parents=True, exist_ok=True)
    block = chance.randbytes(min(size, BLOCK))
    with path.open("wb") as stream:
        for start in range(0, size, BLOCK):
            stream.write(block[: size - start])
    return Content(path, size, _sum(path))


def _sum(path: Path) -> int:
    found = 1
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            found = zlib.adler32(block, found)
    return found


async def _copied(khomas: Installation, contents: Contents) -> dict[tuple[str, str], Sequence[Transfer]]:
    async with client(khomas) as khomas_client:
        await khomas_client.files.put(
            [Pair(one.path, name) for files in contents.values() for name, one in files.items()]
        )
        first = [Transfer(file=name, destination=store) for store, files in contents.items() for name in files]
        assert {one.state for one in await _ended(khomas_client, first)} == {Transfer.STATE_SUCCEEDED}
        wanted = [
            Transfer(file=name, sources=[source], destination=destination)
            for source, destination in PAIRS
            for name in contents[source]
        ]
        ended = await _ended(khomas_client, wanted)
    found: dict[tuple[str, str], list[Transfer]] = {pair: [] for pair in PAIRS}
    for one in ended:
        found[one.sources[0], one.destination].append(one)
    return dict(found)


async def _ended(khomas_client: Any, wanted: Sequence[Transfer]) -> list[Transfer]:
    """Want copies, and wait for their ends."""
    request = pb.BatchCreateTransfersRequest(transfers=wanted)
    answer = await khomas_client.storage.call("storage", "BatchCreateTransfers", request)
    assert not [result.error for result in answer.results if result.HasField("error")]
    names = {result.transfer.name for result in answer.results}
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [one for one in await khomas_client.storage.transfers() if one.name in names]
            if all(one.state >= Transfer.STATE_SUCCEEDED for one in found):
                return found
            await asyncio.sleep(0.5)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_files_go_from_any_storage_to_any_other(
    khomas: Installation,
    moved: Moved,
    stores: Mapping[str, Store],
    contents: Contents,
    source: str,
    destination: str,
) -> None:
    transfers = moved.transfers[source, destination]
    assert [one.state for one in transfers] == [Transfer.STATE_SUCCEEDED] * FILES, transfers
    if stores[source].grid and stores[source].grid == stores[destination].grid:
        assert asyncio.run(_streamed(khomas, transfers)) == [0] * FILES
    folder = stores[destination].folder
    if folder is not None:
        wanted = {name: one.adler32 for name, one in contents[source].items()}
        assert {name: _sum(folder / name[1:]) for name in wanted} == wanted


async def _streamed(khomas: Installation, transfers: Sequence[Transfer]) -> list[int]:
    """How many bytes went through the service."""
    async with client(khomas) as khomas_client:
        requests = [pb.GetTransferRequest(name=one.name) for one in transfers]
        found = [await khomas_client.storage.call("storage", "GetTransfer", request) for request in requests]
    return [sum(attempt.streamed_bytes for attempt in one.attempts) for one in found]


@pytest.mark.timeout(2 * PATIENCE)
def test_no_file_had_its_name_before_it_was_whole(moved: Moved) -> None:
    assert moved.watch.looks > 10
    assert moved.watch.partial == set()


@pytest.mark.timeout(2 * PATIENCE)
def test_every_copy_is_read_back_through_the_service(
    khomas: Installation, moved: Moved, contents: Contents, tmp_path: Path
) -> None:
    assert moved.transfers
    wanted = {name: one.adler32 for files in contents.values() for name, one in files.items()}
    asyncio.run(_got(khomas, list(wanted), tmp_path))
    assert {name: _sum(tmp_path / name[1:]) for name in wanted} == wanted


async def _got(khomas: Installation, names: Sequence[str], folder: Path) -> None:
    async with client(khomas) as khomas_client:
        await khomas_client.files.get([Pair(folder / name[1:], name) for name in names])
