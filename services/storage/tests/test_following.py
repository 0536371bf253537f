"""What is known of the catalogue protects files at every moment, also while the catalogue is listed anew."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest
from sqlalchemy import select, update

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import Database
from khomas.kit.testing import serve
from khomas.storage import known_replicas
from khomas.storage.app import service
from khomas.storage.door.testing import Client
from khomas.storage.rules.protection import decide_alone
from khomas.storage.tables import replica, space, upload_commit
from khomas.storage.testing import MemoryCatalog, Storage, memory_catalog, until


@asynccontextmanager
async def running(folder: Path, catalog: MemoryCatalog) -> AsyncIterator[Storage]:
    """Run the storage, again where it ran in this folder before."""
    settings = {"storage": {"poll": 0.05, "deletion_pause": 0.05, "catalog_deadline": 0.7}}
    async with (
        serve(memory_catalog(catalog), service, state=folder / "state", settings=settings) as served,
        aiohttp.ClientSession() as http,
    ):
        root = folder / "state" / "storage" / "local"
        yield Storage(served, StorageServiceStub(served.channel), catalog, http, root)


async def used(storage: Storage) -> tuple[int, int]:
    request = pb.GetStorageElementRequest(name="storageElements/local")
    space = (await storage.stub.GetStorageElement(request)).space
    return space.used_bytes, space.file_count


async def refused(storage: Storage) -> str:
    """Try to forget the StorageElement."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await storage.stub.DeleteStorageElement(
            pb.DeleteStorageElementRequest(name="storageElements/local", request_id=str(uuid4()))
        )
    return reason_of(caught.value)


async def stored_long_ago(storage: Storage, *names: str) -> None:
    """Bring files in, and let their commits be too old to say anything."""
    for name in names:
        await storage.store(name, b"bytes")

    async def counted() -> bool:
        return await used(storage) == (5 * len(names), len(names))

    await until(counted)
    async with storage.parts.database.write() as connection:
        await connection.execute(update(upload_commit).values(create_time=datetime.now(UTC) - timedelta(days=1)))


def away_for_long(catalog: MemoryCatalog) -> None:
    """Let so much happen that the catalogue forgets what the storage has not heard of yet."""
    for file in list(catalog.files.values()):
        catalog.tell("catalog.file.updated", file)
    catalog.forgotten = len(catalog.events)


async def test_files_are_protected_while_the_catalogue_is_listed_anew(tmp_path: Path, catalog: MemoryCatalog) -> None:
    async with running(tmp_path, catalog) as storage:
        await stored_long_ago(storage, "/hess/a", "/hess/b")
    away_for_long(catalog)
    begun = asyncio.Event()

    async def hang(number: int) -> None:
        if number:
            begun.set()
            await asyncio.Event().wait()

    catalog.turning = hang
    async with running(tmp_path, catalog) as storage:
        await asyncio.wait_for(begun.wait(), 60)

        client = Client(storage, "storage.modify:/")
        assert [await client.status("DELETE", f"hess/{name}") for name in "ab"] == [403, 403]
        assert await refused(storage) == "STORAGE_ELEMENT_NOT_EMPTY"
        assert await used(storage) == (10, 2)
        assert storage.visible() == ["hess/a", "hess/b"]


async def test_bytes_of_another_file_stay_while_the_catalogue_is_listed_anew(
    tmp_path: Path, catalog: MemoryCatalog
) -> None:
    async with running(tmp_path, catalog) as storage:
        await stored_long_ago(storage, "/hess/one", "/hess/two")
    # Nobody of the storage hears of it before the listing comes to that file.
    catalog.files["/hess/two"].replicas[0].path = "hess/one"
    away_for_long(catalog)
    catalog.delete("/hess/one")

    async def hang(number: int) -> None:
        if number:
            await asyncio.Event().wait()

    # The one that is to go is listed, and its bytes are asked for before the other one is.
    catalog.turning = hang
    async with running(tmp_path, catalog) as storage:

        async def gone() -> bool:
            return "/hess/one" not in catalog.files

        await until(gone)
        assert "hess/one" in storage.visible()


async def test_listing_that_dies_half_way_takes_nothing_away_and_the_next_one_forgets_what_is_gone(
    tmp_path: Path, catalog: MemoryCatalog
) -> None:
    async with running(tmp_path, catalog) as storage:
        await stored_long_ago(storage, "/hess/a", "/hess/b", "/hess/c")
    away_for_long(catalog)
    del catalog.files["/hess/c"]
    died, go_on = asyncio.Event(), asyncio.Event()

    async def die(number: int) -> None:
        if number and not go_on.is_set():
            died.set()
            raise ConnectionError("the catalogue dies here")

    catalog.turning = die
    async with running(tmp_path, catalog) as storage:
        await asyncio.wait_for(died.wait(), 60)
        assert await used(storage) == (15, 3)
        go_on.set()

        async def counted() -> bool:
            return await used(storage) == (10, 2)

        await until(counted)
        client = Client(storage, "storage.modify:/")
        assert [await client.status("DELETE", f"hess/{name}") for name in "abc"] == [403, 403, 204]


async def test_commit_protects_its_file_until_its_news_have_come(tmp_path: Path, catalog: MemoryCatalog) -> None:
    async with running(tmp_path, catalog) as storage:
        await stored_long_ago(storage, "/hess/a")
    away_for_long(catalog)
    begun = asyncio.Event()

    async def hang(number: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    catalog.turning = hang
    async with running(tmp_path, catalog) as storage:
        await asyncio.wait_for(begun.wait(), 60)
        await storage.store("/hess/new", b"bytes")
        async with storage.parts.database.write() as connection:
            hour_ago = datetime.now(UTC) - timedelta(hours=1)
            # The listing takes an hour, and whatever was followed before is older.
            await known_replicas.know_until(connection, hour_ago)
            new = upload_commit.c.create_time > hour_ago
            await connection.execute(update(upload_commit).where(new).values(create_time=hour_ago))

        assert await Client(storage, "storage.modify:/").status("DELETE", "hess/new") == 403


def file(uid: str, size_bytes: int = 5, **more: Any) -> dict[str, file_pb2.File]:
    one = file_pb2.File(uid=uid, name=f"/{uid}", size_bytes=size_bytes, state=file_pb2.File.STATE_ACTIVE, **more)
    one.replicas.add(storage_element="local", path=uid)
    return {uid: one}


async def noted(database: Database, *files: dict[str, file_pb2.File]) -> None:
    for one in files:
        async with database.write() as connection:
            await decide_alone(connection)
            await known_replicas.note(connection, one)


async def left(database: Database) -> tuple[list[str], list[tuple[int, int]]]:
    async with database.read() as connection:
        uids = await connection.scalars(select(replica.c.file_uid).order_by(replica.c.file_uid))
        sums = (await connection.execute(select(space.c.used_bytes, space.c.file_count))).all()
        return list(uids), [(row.used_bytes, row.file_count) for row in sums]


async def begun(database: Database) -> int:
    async with database.write() as connection:
        await decide_alone(connection)
        return await known_replicas.begin_listing(connection)


async def ended(database: Database, listing: int) -> None:
    async with database.write() as connection:
        await decide_alone(connection)
        await known_replicas.end_listing(connection, listing, datetime.now(UTC))


async def test_listing_keeps_what_it_has_seen_and_what_events_have_brought_meanwhile(database: Database) -> None:
    await noted(database, file("gone"), file("seen"))

    listing = await begun(database)
    await noted(database, file("seen", 7), file("new"))
    assert await left(database) == (["gone", "new", "seen"], [(17, 3)])
    await ended(database, listing)

    assert await left(database) == (["new", "seen"], [(12, 2)])


async def test_listing_of_another_process_takes_nothing_from_one_that_began_later(database: Database) -> None:
    await noted(database, file("a"), file("b"), file("gone"))
    first, second = await begun(database), await begun(database)
    await noted(database, file("a"))

    await ended(database, first)
    assert (await left(database))[0] == ["a"]
    await noted(database, file("b"))
    await ended(database, second)

    assert (await left(database))[0] == ["a", "b"]


async def test_what_was_noted_since_a_listing_began_is_newer_than_what_it_says(database: Database) -> None:
    await noted(database, file("a"), file("b"))
    listing = await begun(database)
    await noted(database, file("b"))

    async with database.read() as connection:
        assert await known_replicas.noted_since(connection, ["a", "b"], listing) == {"b"}


async def test_listing_begins_when_nobody_is_noting_with_the_number_before(database: Database) -> None:
    async with database.write() as connection:
        await decide_alone(connection)
        await known_replicas.note(connection, file("a"))
        beginning = asyncio.create_task(begun(database))
        await asyncio.sleep(0.2)
        assert not beginning.done()
    listing = await beginning

    await noted(database, file("b"))
    await ended(database, listing)
    assert (await left(database))[0] == ["b"]
