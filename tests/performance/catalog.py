"""The catalogue against the database below it."""

import sqlite3
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.catalog import tables
from khomas.catalog.app import migrate, service
from khomas.catalog.testing import create, declare, new_file
from khomas.kit.testing import serve
from khomas.kit.testing.postgresql import postgresql_server
from tests.performance.figures import Figure, compared

_FILES = 1000
_TABLES = ("file", "replica", "file_value")


async def measure(rounds: int) -> list[Figure]:
    """Measure batch creation and lookup over the wire, on SQLite and on PostgreSQL."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="khomas-") as name:
        url = f"sqlite+aiosqlite:///{name}/catalog.db"
        bare = _BareSqlite(Path(name) / "bare.db")
        await migrate(f"sqlite+aiosqlite:///{bare.path}")
        figures += await _measure("SQLite", url, Path(name) / "state", bare, rounds)
    with postgresql_server() as server, tempfile.TemporaryDirectory(prefix="khomas-") as name:
        bare_url = await server.create_database()
        await migrate(bare_url)
        figures += await _measure(
            "PostgreSQL", await server.create_database(), Path(name), _BarePostgresql(bare_url), rounds
        )
    return figures


async def _measure(
    kind: str, url: str, state: Path, bare: "_BareSqlite | _BarePostgresql", rounds: int
) -> list[Figure]:
    async with serve(service, state=state, database_urls={"catalog": url}) as served:
        catalog = CatalogServiceStub(served.channel)
        await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER", target="TEXT"))
        await catalog.BatchCreateFiles(create(*_files(0, 1)))
        await bare.prepare()
        rates: list[float] = []
        batches = iter(range(1, 10_000))

        async def ours() -> float:
            request = create(*_files(next(batches), _FILES))
            begin = time.perf_counter()
            await catalog.BatchCreateFiles(request)
            rates.append(_FILES / (time.perf_counter() - begin))
            return _FILES / rates[-1]

        async def theirs() -> float:
            return await bare.insert(next(batches), _FILES)

        insert = await compared(f"{kind}: 1000 files created / bulk insert of the same rows", ours, theirs, rounds)
        names = [f"/hess/dl3/1/{number:06}.fits" for number in range(_FILES)]
        reads: list[float] = []

        async def our_lookup() -> float:
            begin = time.perf_counter()
            request = pb.BatchGetFilesRequest(names=names, view=pb.FILE_VIEW_REPLICAS)
            await catalog.BatchGetFiles(request)
            reads.append(_FILES / (time.perf_counter() - begin))
            return _FILES / reads[-1]

        lookup = await compared(
            f"{kind}: 1000 names with replicas / bare indexed query", our_lookup, lambda: bare.lookup(names), rounds
        )
        return [
            insert,
            Figure(f"{kind}: files registered, 1000 a call", "files/s", rates, ">= 20000"),
            lookup,
            Figure(f"{kind}: replicas of 1000 LFNs", "files/s", reads, ">= 30000"),
        ]


def _files(batch: int, count: int) -> list[Any]:
    return [
        new_file(f"/hess/dl3/{batch}/{number:06}.fits", metadata={"zenith": float(number), "target": "Crab"})
        for number in range(count)
    ]


def _rows(batch: int, count: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows that a call writes, for the three tables."""
    first = batch * _FILES + 1
    files, replicas, values = [], [], []
    for number in range(count):
        id_, name = first + number, f"/hess/dl3/{batch}/{number:06}.fits"
        files.append((id_, str(uuid4()), name, 1, 7, "0b8e02ea", "", "", "", "", "tester", 1, 1))
        replicas.append((id_, "local", 1))
        values += [(id_, 1, float(number), None), (id_, 2, None, "Crab")]
    return {"file": files, "replica": replicas, "file_value": values}


_COLUMNS = {
    "file": (
        *("id", "uid", "name", "directory_id", "size_bytes", "adler32", "sha256", "md5", "content_digest"),
        *("origin", "owner", "state", "version"),
    ),
    "replica": ("file_id", "storage_element", "state"),
    "file_value": ("file_id", "key_id", "number", "text"),
}
_LOOKUP = "SELECT f.*, r.storage_element, r.path FROM file f JOIN replica r ON r.file_id = f.id WHERE "


class _BareSqlite:
    """The same rows by executemany in one transaction, with the same indexes and settings."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def prepare(self) -> None:
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute("INSERT INTO directory (id, path) VALUES (1, '/')")
        for id_, key in ((1, "zenith"), (2, "target")):
            self._connection.execute("INSERT INTO metadata_key VALUES (?, ?, 3, '', '', 0)", (id_, key))

    async def insert(self, batch: int, count: int) -> float:
        rows = _rows(batch, count)
        rows["file"] = [(*row, 0, 0) for row in rows["file"]]
        begin = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            columns = [*_COLUMNS[table], *(("create_time", "update_time") if table == "file" else ())]
            marks = ", ".join("?" * len(columns))
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608
            self._connection.executemany(statement, rows[table])
        self._connection.execute("COMMIT")
        return time.perf_counter() - begin

    async def lookup(self, names: list[str]) -> float:
        known = [row[0] for row in self._connection.execute("SELECT name FROM file LIMIT ?", (len(names),))]
        begin = time.perf_counter()
        marks = ", ".join("?" * len(known))
        self._connection.execute(f"{_LOOKUP} f.name IN ({marks}) AND f.state < 3", known).fetchall()
        return time.perf_counter() - begin


class _BarePostgresql:
    """The same rows by COPY in one transaction, with the same indexes."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)

    async def prepare(self) -> None:
        self._connection = await asyncpg.connect(
            host=self._url.query["host"], user=self._url.username, database=self._url.database
        )
        await self._connection.execute("INSERT INTO directory (id, path) VALUES (1, '/')")
        for id_, key in ((1, "zenith"), (2, "target")):
            await self._connection.execute("INSERT INTO metadata_key VALUES ($1, $2, 3, '', '', now())", id_, key)
        for table in _TABLES:
            assert table in tables.metadata.tables

    async def insert(self, batch: int, count: int) -> float:
        now = datetime.now(UTC)
        rows = _rows(batch, count)
        rows["file"] = [(*row, now, now) for row in rows["file"]]
        begin = time.perf_counter()
        async with self._connection.transaction():
            for table in _TABLES:
                columns = [*_COLUMNS[table], *(("create_time", "update_time") if table == "file" else ())]
                await self._connection.copy_records_to_table(table, records=rows[table], columns=columns)
        return time.perf_counter() - begin

    async def lookup(self, names: list[str]) -> float:
        known = [row[0] for row in await self._connection.fetch("SELECT name FROM file LIMIT $1", len(names))]
        begin = time.perf_counter()
        await self._connection.fetch(f"{_LOOKUP} f.name = ANY($1) AND f.state < 3", known)
        return time.perf_counter() - begin
