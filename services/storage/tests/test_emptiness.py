"""A StorageElement is forgotten only if nothing is there, is going there or is wanted there."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import delete, insert

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import grant_pb2, transfer_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import Database
from khomas.storage.elements.elements import forgotten
from khomas.storage.elements.emptiness import Emptiness, unchanged
from khomas.storage.tables import storage_element, transfer, upload
from khomas.storage.testing import Storage


class Asked:
    """A catalogue that has nothing there; something happens while it is asked."""

    def __init__(self, database: Database, meanwhile: Mapping[str, Any] | None = None, table: Any = upload) -> None:
        self.database, self.meanwhile, self.table = database, meanwhile, table

    async def list_files(self, request: catalog_pb.ListFilesRequest) -> catalog_pb.ListFilesResponse:
        if self.meanwhile is not None:
            async with self.database.write() as connection:
                await connection.execute(insert(self.table), self.meanwhile)
        return catalog_pb.ListFilesResponse()


async def still_empty(database: Database, catalog: Any) -> bool:
    came = await Emptiness(database, catalog).looked("disk")
    assert came is not None
    async with database.write() as connection:
        return await unchanged(connection, "disk", came)


def an_upload(state: int) -> dict[str, Any]:
    fixed = {"storage_element": "disk", "max_files": 1, "reserve_bytes": 0, "origin": "", "owner": ""}
    now = datetime.now(UTC)
    return {"uid": str(uuid4()), **fixed, "state": state, "create_time": now, "expire_time": now}


def a_transfer(state: int) -> dict[str, Any]:
    texts = ("file", "file_uid", "sources", "origin", "owner", "message", "path")
    numbers = ("priority", "max_attempts", "reason", "size_bytes", "attempt")
    times = ("next_attempt_time", "create_time", "state_time", "end_time")
    values = {**dict.fromkeys(texts, ""), **dict.fromkeys(numbers, 0), **dict.fromkeys(times, datetime.now(UTC))}
    return {"uid": str(uuid4()), "destination": "disk", "state": state, **values}


async def test_what_has_nothing_is_empty_however_often_it_had_something(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(insert(upload), an_upload(grant_pb2.Upload.STATE_COMMITTED))
        await connection.execute(insert(transfer), a_transfer(transfer_pb2.Transfer.STATE_SUCCEEDED))

    assert await still_empty(database, Asked(database))


@pytest.mark.parametrize("state", [grant_pb2.Upload.STATE_OPEN, grant_pb2.Upload.STATE_COMMITTED])
async def test_upload_that_comes_while_the_catalogue_is_asked_is_seen(database: Database, state: int) -> None:
    assert not await still_empty(database, Asked(database, an_upload(state)))


@pytest.mark.parametrize("state", [transfer_pb2.Transfer.STATE_RUNNING, transfer_pb2.Transfer.STATE_SUCCEEDED])
async def test_copy_that_comes_while_the_catalogue_is_asked_is_seen(database: Database, state: int) -> None:
    assert not await still_empty(database, Asked(database, a_transfer(state), transfer))


async def test_nothing_begins_on_an_element_that_is_being_forgotten(database: Database) -> None:
    now = datetime.now(UTC)
    # fmt: off
    row = {
        "id": "disk", "uid": "1", "description": "", "site": "", "media": 1, "access_points": [], "read_only": False,
        "capacity_bytes": 0, "create_time": now, "update_time": now, "version": 1, "free_bytes": -1,
        "reachable": True, "message": "", "check_time": now, "draining": False, "labels": {},
    }
    # fmt: on
    async with database.write() as connection:
        await connection.execute(insert(storage_element), row)

    async def begin() -> set[str]:
        async with database.write() as connection:
            return await forgotten(connection, {"disk"})

    assert await begin() == set()
    async with database.write() as connection:
        await connection.execute(delete(storage_element))
        beginning = asyncio.create_task(begin())
        await asyncio.sleep(0.2)
        assert not beginning.done()
    assert await beginning == {"disk"}


async def refusal(storage: Storage, name: str) -> str:
    """Try to forget a StorageElement."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await storage.stub.DeleteStorageElement(
            pb.DeleteStorageElementRequest(name=f"storageElements/{name}", request_id=str(uuid4()))
        )
    return reason_of(caught.value)


async def test_element_is_not_forgotten_right_after_a_commit(both: Storage, tmp_path: Path) -> None:
    refusals = []
    for number in range(10):
        name = f"disk{number}"
        (tmp_path / name).mkdir()
        await both.element(name, tmp_path / name)
        upload = await both.open(storage_elements=[name])
        await both.put(upload, b"bytes")
        await both.commit(both.wanted(upload, f"/hess/{number}", b"bytes"))
        refusals.append(await refusal(both, name))

    assert refusals == ["STORAGE_ELEMENT_NOT_EMPTY"] * 10
    assert not (await both.download("/hess/0")).HasField("error")


async def test_element_that_takes_an_empty_file_is_not_forgotten(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    await storage.element("disk", tmp_path / "disk")
    await storage.store("/hess/empty", b"")
    (tmp_path / "disk").rmdir()

    wanted = [transfer_pb2.Transfer(file="/hess/empty", destination="disk", max_attempts=100)]
    await storage.stub.BatchCreateTransfers(pb.BatchCreateTransfersRequest(transfers=wanted, request_id=str(uuid4())))

    assert await refusal(storage, "disk") == "STORAGE_ELEMENT_NOT_EMPTY"


async def test_nothing_is_forgotten_while_the_catalogue_does_not_answer(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    await storage.element("disk", tmp_path / "disk")

    def away(method: str) -> None:
        if method == "ListFiles":
            raise ConnectionError("away")

    storage.catalog.before = away
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await storage.stub.DeleteStorageElement(
            pb.DeleteStorageElementRequest(name="storageElements/disk", request_id=str(uuid4()))
        )

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    found = await storage.stub.ListStorageElements(pb.ListStorageElementsRequest())
    assert [one.name for one in found.storage_elements] == ["storageElements/disk", "storageElements/local"]
