"""Transfers: what the queue costs with a hundred thousand waiting, and files to every storage against bare tools."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from sqlalchemy import func, select
from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1 import transfer_pb2
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.database import Database, insert_many
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uid, new_uids
from khomas.kit.testing import serve
from khomas.kit.testing.postgresql import postgresql_server
from khomas.storage.app import open_database, service
from khomas.storage.landing import Wanted
from khomas.storage.links.measures import Measures, Streams
from khomas.storage.tables import event, transfer
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog
from khomas.storage.transfers.attempts import Attempt
from khomas.storage.transfers.queue import Outcome, Queue
from khomas.storage.transfers.retry import Policy
from khomas.storage.transfers.turns import deal, lane
from tests.performance import peers
from tests.performance.figures import Figure
from tests.testbeds import storages
from tests.testbeds.storages import Store

_LINKS = 20
_TOGETHER = 5000
_ROUNDS = 10
_MIB = 2**20
_PATIENCE = 900
_POLICY = Policy(attempts=5, pause=timedelta(seconds=30), max_pause=timedelta(hours=1))
# Files a second, of 1 MiB each.
_GOALS = {"davs": ">= 350", "sftp": ">= 150"}
_TARGETS = ("disk", "dav-apache", "dav-nginx", "dav-first", "root-first", "sftp", "s3-rclone")


async def measure(files: int, size_bytes: int, waiting: int = 100_000) -> list[Figure]:
    """Measure the queue on both databases, then small files and a large one to each storage."""
    with postgresql_server(durable=True) as server, tempfile.TemporaryDirectory(prefix="khomas-") as name:
        figures = await _queue("PostgreSQL", await server.create_database(), waiting)
        figures += await _queue("SQLite", f"sqlite+aiosqlite:///{Path(name) / 'storage.db'}", waiting)
    for target in _TARGETS:
        print(f"measuring: transfers to {target} …", file=sys.stderr, flush=True)
        figures += await asyncio.to_thread(_moved, target, files, size_bytes)
    return figures


async def _queue(kind: str, url: str, waiting: int) -> list[Figure]:
    database = open_database(url)
    await database.upgrade()
    try:
        queue = Queue(
            database,
            EventLog(database, event),
            new_uid(),
            timedelta(minutes=10),
            _POLICY,
            Measures(database, Streams(first=2, most=32)),
        )
        await _fill(database, _TOGETHER)
        few = [await _taken_and_settled(queue) for _ in range(_ROUNDS)]
        for _ in range(waiting // _TOGETHER):
            await _fill(database, _TOGETHER)
        many = [await _taken_and_settled(queue) for _ in range(_ROUNDS)]
    finally:
        await database.close()
    name = f"transfers taken and settled with {waiting:,} waiting, {kind}"
    return [
        Figure(f"{name}: CPU of the service", "us", [1e6 * cpu / count for count, cpu, _ in many]),
        Figure(f"{name}", "1/s", [count / seconds for count, _, seconds in many]),
        Figure(
            f"{name}: CPU against that with {_TOGETHER:,}",
            "x",
            [(big[1] / big[0]) / (small[1] / small[0]) for big, small in zip(many, few, strict=True)],
            "<= 1.5",
        ),
    ]


async def _fill(database: Database, count: int) -> None:
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [
        {
            "uid": uid,
            "file": f"/hess/{uid}",
            "file_uid": uid,
            "destination": f"to{number % _LINKS}",
            "sources": "",
            "priority": 0,
            "max_attempts": 0,
            "origin": "",
            "owner": "tester",
            "share": f"share{number % 3}",
            "state": transfer_pb2.Transfer.STATE_WAITING,
            "reason": transfer_pb2.TRANSFER_REASON_QUEUED,
            "message": "",
            "size_bytes": _MIB,
            "attempt": 0,
            "path": "",
            "next_attempt_time": now,
            "create_time": now,
            "state_time": now,
            "lane": lane("from", f"to{number % _LINKS}"),
            "turn": 0.0,
        }
        for number, uid in enumerate(new_uids(count))
    ]
    async with database.write() as connection:
        await deal(connection, rows, {})
        await insert_many(connection, transfer, rows)


async def _taken_and_settled(queue: Queue) -> tuple[int, float, float]:
    """Return how many were, and the seconds of CPU and of the clock."""
    cpu, begin = time.process_time(), time.perf_counter()
    runs = await queue.claim(8, {})
    rows = [row for run in runs for row in run]
    await queue.settle([_done(row) for row in rows])
    return len(rows), time.process_time() - cpu, time.perf_counter() - begin


def _done(row: Any) -> Outcome:
    attempt = Attempt(row, datetime.now(UTC), time.monotonic(), wanted=Wanted(_MIB, "00000001"))
    attempt.copied = attempt.wanted
    return replace(attempt.end(), source="from", bytes=_MIB)


def _moved(target: str, files: int, size_bytes: int) -> list[Figure]:
    with storages.running(target) as stores, tempfile.TemporaryDirectory(prefix="khomas-") as name:
        return asyncio.run(_to(target, stores[target], Path(name), files, size_bytes))


async def _to(target: str, store: Store, folder: Path, files: int, size_bytes: int) -> list[Figure]:
    """Bring many small files and a large one from a disk to a storage; against what cp needs for the same."""
    async with _serving(folder, target, store) as storage:
        small = [_made(storage, f"small/{number}", os.urandom(_MIB)) for number in range(files)]
        large = [_made(storage, "large", os.urandom(_MIB), size_bytes // _MIB)]
        figures = []
        for what, names in ((f"{files} x 1 MiB", small), (f"1 x {size_bytes // _MIB} MiB", large)):
            paths = [storage.root / name for name in names]
            cpu, seconds = await _brought(storage, target, names)
            amount = sum(path.stat().st_size for path in paths)
            title = f"transfer {what} disk -> {target}, verified"
            goal = _GOALS.get(store.protocol, "") if len(names) > 1 else ""
            figures += [
                Figure(title, "MiB/s", [amount / _MIB / seconds]),
                Figure(f"{title}: files", "1/s", [len(names) / seconds], goal),
                Figure(f"{title}: CPU of the service for 1 GiB", "s", [cpu * 2**30 / amount]),
            ]
            for name, peer in {"cp": peers.cp, **peers.peers_of(store)}.items():
                took = await asyncio.to_thread(peer, paths, store, folder)
                await asyncio.to_thread(peers.forget, store, ("small", "large"))
                large_dav = store.protocol == "davs" and name == "rclone" and len(names) == 1
                goal = ">= 0.6" if large_dav else ""
                figures.append(Figure(f"{title}: rate against {name}", "x", [took / seconds], goal))
    return figures


@asynccontextmanager
async def _serving(folder: Path, target: str, store: Store) -> AsyncIterator[Storage]:
    settings = {"credentials": {target: store.credential} if store.credential else {}, "poll": 0.2}
    catalog = MemoryCatalog()
    async with (
        serve(memory_catalog(catalog), service, state=folder / "state", settings={"storage": settings}) as served,
        aiohttp.ClientSession() as http,
    ):
        root = folder / "state/storage/local"
        storage = Storage(served, StorageServiceStub(served.channel), catalog, http, root)
        request = pb.CreateStorageElementRequest(storage_element=store.element(target), request_id=str(uuid4()))
        await storage.stub.CreateStorageElement(request)
        yield storage


def _made(storage: Storage, name: str, block: bytes, blocks: int = 1) -> str:
    """Put a file on the disk and into the catalogue; return its path."""
    path, checksum = storage.root / name, 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(block)
            checksum = adler32(block, checksum)
    size_bytes = blocks * len(block)
    made = file_pb2.File(name=f"/{name}", uid=new_uid(), size_bytes=size_bytes, state=file_pb2.File.STATE_ACTIVE)
    made.checksums.adler32 = f"{checksum:08x}"
    made.replicas.add(storage_element="local", path=name, state=file_pb2.Replica.STATE_AVAILABLE)
    storage.catalog.files[made.name] = made
    return name


async def _brought(storage: Storage, target: str, names: Sequence[str]) -> tuple[float, float]:
    """Bring files there; return the seconds of CPU and of the clock."""
    wanted = [transfer_pb2.Transfer(file=f"/{name}", destination=target) for name in names]
    cpu, begin = time.process_time(), time.perf_counter()
    await storage.stub.BatchCreateTransfers(pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4())))
    left = select(func.count()).where(transfer.c.end_time.is_(None))
    async with asyncio.timeout(_PATIENCE):
        while True:
            async with storage.parts.database.read() as connection:
                if not (await connection.execute(left)).scalar():
                    break
            await asyncio.sleep(0.05)
    took = time.process_time() - cpu, time.perf_counter() - begin
    failed = (await storage.stub.ListTransfers(pb.ListTransfersRequest(filter="state = FAILED"))).transfers
    if failed:
        raise RuntimeError(f"{len(failed)} files did not get to {target}: {failed[0].message}")
    return took
