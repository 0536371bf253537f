"""The catalogue as a client meets it: a process of its own, TLS, token, a durable database."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from sqlalchemy import make_url

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File
from khomas.catalog.testing import create, declare, new_file
from khomas.kit.ids import new_uid
from khomas.kit.testing.postgresql import postgresql_server
from tests.performance.costs import Call, Calls, by, delays, rates
from tests.performance.figures import Figure
from tests.performance.lone import Lone, lone

_FILES = 1000
_DATASET_FILES = 20_000
_DEPTH = 5
_SMALL = 200
_SIZES = """SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(ARRAY['file', 'replica']) AS name"""


async def measure(rounds: int) -> list[Figure]:
    """Measure the goals of the catalogue on PostgreSQL with and without TLS, then on SQLite."""
    with postgresql_server(durable=True) as server, tempfile.TemporaryDirectory(prefix="khomas-") as folder:
        figures = await _measure("PostgreSQL", await server.create_database(), rounds)
        figures += await _measure("PostgreSQL", await server.create_database(), rounds, tls=False)
        figures += await _measure("SQLite", f"sqlite+aiosqlite:///{Path(folder) / 'catalog.db'}", rounds)
    return figures


async def _measure(kind: str, url: str, rounds: int, *, tls: bool = True) -> list[Figure]:
    async with lone("catalog", url, tls=tls) as service:
        bench = _Bench(f"{kind}{'' if tls else ', no TLS'}: ", service, url, rounds)
        await bench.prepare()
        figures = [*await bench.registration(1), *await bench.registration(4)]
        if kind == "PostgreSQL" and tls:
            figures.append(await _bytes_a_file(bench.label, url))
        return [
            *figures,
            *await bench.provenance(),
            *await bench.one_file(1),
            *await bench.one_file(4),
            *await bench.lookup(),
            *await bench.one_lookup(1),
            *await bench.one_lookup(4),
            *await bench.stream(),
            *await bench.lineage(),
        ]


class _Bench:
    def __init__(self, label: str, service: Lone, url: str, rounds: int) -> None:
        self.label = label
        self._service = service
        self._url = url
        self._rounds = rounds
        self._catalog = CatalogServiceStub(service.channel)
        self._batches = iter(range(1_000_000))

    async def prepare(self) -> None:
        """Declare keys, and let everything be used once."""
        await self._catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER", target="TEXT"))
        for _ in range(3):
            await self._catalog.BatchCreateFiles(create(*self._files(10)))

    def _files(self, count: int) -> list[File]:
        """Return what the physical limits are measured with: a file and a replica."""
        folder = f"/hess/dl3/{next(self._batches)}"
        return [new_file(f"{folder}/{number:06}.fits") for number in range(count)]

    async def registration(self, clients: int) -> list[Figure]:
        """Register 1000 files a call."""
        name = f"{self.label}files registered, 1000 a call, {by(clients)}"

        async def once() -> Calls:
            requests = [create(*self._files(_FILES)) for _ in range(2 * clients)]
            return Calls(_FILES * len(requests), [self._creation(one) for one in requests])

        return await self._costs(name, "files", clients, once, ">= 20000", "<= 60" if clients > 1 else "")

    async def provenance(self) -> list[Figure]:
        """Register outputs with metadata, parents, origin and a dataset."""
        inputs = self._files(100)
        await self._catalog.BatchCreateFiles(create(*inputs))

        async def once() -> Calls:
            calls: list[Call] = []
            for _ in range(8):
                made = [_output(one.name, inputs[n % len(inputs)].name) for n, one in enumerate(self._files(_FILES))]
                request = create(*made, datasets=["datasets/outputs"])
                calls.append(self._creation(request))
            return Calls(_FILES * len(calls), calls)

        name = f"{self.label}outputs with provenance, 1000 a call, {by(4)}"
        return await self._costs(name, "files", 4, once, ">= 8000")

    async def one_file(self, clients: int) -> list[Figure]:
        """Register one file a call."""

        async def once() -> Calls:
            return Calls(_SMALL, [self._creation(create(one)) for one in self._files(_SMALL)])

        name = f"{self.label}files registered, one a call, {by(clients)}"
        return await self._costs(name, "files", clients, once, ">= 600")

    async def lookup(self) -> list[Figure]:
        """Read the replicas of 1000 LFNs."""
        files = self._files(_FILES)
        await self._catalog.BatchCreateFiles(create(*files))
        request = pb.BatchGetFilesRequest(names=[one.name for one in files], view=pb.FILE_VIEW_REPLICAS)
        name = f"{self.label}replicas of 1000 LFNs, {by(2)}"
        calls = [lambda: self._catalog.BatchGetFiles(request)] * 4
        return await self._costs(name, "files", 2, lambda: _same(4 * _FILES, calls), ">= 30000")

    async def one_lookup(self, clients: int) -> list[Figure]:
        """Read the replicas of one LFN."""
        (file,) = self._files(1)
        await self._catalog.BatchCreateFiles(create(file))
        request = pb.BatchGetFilesRequest(names=[file.name], view=pb.FILE_VIEW_REPLICAS)
        name = f"{self.label}replicas of one LFN, {by(clients)}"
        calls = [lambda: self._catalog.BatchGetFiles(request)] * _SMALL
        goal = {1: ">= 1000", 4: ">= 2000"}[clients]
        return await self._costs(name, "calls", clients, lambda: _same(_SMALL, calls), goal)

    async def stream(self) -> list[Figure]:
        """List a dataset with its replicas."""
        for _ in range(_DATASET_FILES // _FILES):
            await self._catalog.BatchCreateFiles(create(*self._files(_FILES), datasets=["datasets/full"]))
        if self._url.startswith("postgresql"):
            # What its autovacuum does by itself within a minute.
            async with _connected(self._url) as connection:
                await connection.execute("ANALYZE")
        request = pb.ListFilesRequest(dataset="datasets/full", view=pb.FILE_VIEW_REPLICAS)

        async def read() -> None:
            files = 0
            async for answer in self._catalog.StreamFiles(request):
                files += len(answer.files)
            assert files == _DATASET_FILES

        name = f"{self.label}dataset of 20,000 streamed with replicas"
        return await self._costs(name, "files", 1, lambda: _same(_DATASET_FILES, [read]), ">= 60000")

    async def lineage(self) -> list[Figure]:
        """Find the ancestors of a file, five deep."""
        above: list[str] = []
        for _ in range(_DEPTH + 1):
            files = self._files(_FILES)
            for number, parent in enumerate(above):
                files[number].parents.append(parent)
            await self._catalog.BatchCreateFiles(create(*files))
            above = [one.name for one in files]
        request = pb.ListLineageRequest(names=[above[7]], direction=pb.ListLineageRequest.DIRECTION_ANCESTORS)

        async def walk() -> None:
            assert len((await self._catalog.ListLineage(request)).edges) == _DEPTH

        return await delays(self._service, f"{self.label}ancestors five deep", _SMALL, walk, goal="<= 5")

    def _creation(self, request: pb.BatchCreateFilesRequest) -> Call:
        return lambda: self._catalog.BatchCreateFiles(request)

    async def _costs(
        self,
        name: str,
        unit: str,
        clients: int,
        once: Callable[[], Awaitable[Calls]],
        goal: str,
        cpu_goal: str = "",
    ) -> list[Figure]:
        return await rates(self._service, name, unit, self._rounds, once, clients=clients, goal=goal, cpu_goal=cpu_goal)


def _output(name: str, parent: str) -> File:
    return new_file(name, metadata={"zenith": 20.5, "target": "Crab"}, parents=[parent], origin=_ORIGIN)


_ORIGIN = new_uid()


async def _same(items: int, calls: Sequence[Call]) -> Calls:
    return Calls(items, calls)


async def _bytes_a_file(label: str, url: str) -> Figure:
    """Return what files and replicas take on the disk, indexes and all."""
    async with _connected(url) as connection:
        size = await connection.fetchval(_SIZES)
        files = await connection.fetchval("SELECT count(*) FROM file")
    return Figure(f"{label}a file and its replica on disk", "bytes", [float(size) / files], "<= 500")


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    address = make_url(url)
    connection = await asyncpg.connect(host=address.query["host"], user=address.username, database=address.database)
    try:
        yield connection
    finally:
        await connection.close()
