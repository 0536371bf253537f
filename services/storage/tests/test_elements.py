"""StorageElements are made known, looked at, changed and forgotten."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from khomas.api.common.v1 import event_pb2
from khomas.api.storage.v1 import storage_element_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.kit.boundary.status import reason_of
from khomas.storage.elements.elements import Elements
from khomas.storage.testing import Storage, until

Element = storage_element_pb2.StorageElement


def described(name: str, root: Path | str, protocol: str = "posix", **fields: Any) -> Element:
    element = Element(name=f"storageElements/{name}", media=Element.MEDIA_DISK, **fields)
    element.access_points.add(protocol=protocol, address=str(root))
    return element


async def make(storage: Storage, element: Element) -> Element:
    request = pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    return await storage.stub.CreateStorageElement(request)


async def change(storage: Storage, element: Element, *paths: str) -> Element:
    request = pb.UpdateStorageElementRequest(
        storage_element=element, update_mask=FieldMask(paths=paths), request_id=str(uuid4())
    )
    return await storage.stub.UpdateStorageElement(request)


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_of(caught.value)


async def test_embedded_storage_has_a_local_element(storage: Storage) -> None:
    found = await storage.stub.ListStorageElements(pb.ListStorageElementsRequest())

    (local,) = found.storage_elements
    assert (local.name, local.site, local.media) == ("storageElements/local", "local", Element.MEDIA_DISK)
    assert local.health.reachable
    assert local.space.free_bytes > 0
    assert local.access_points[0].address == str(storage.root)


async def test_list_filters_and_pages(storage: Storage, tmp_path: Path) -> None:
    for name, site in (("a", "here"), ("b", "there"), ("c", "there")):
        (tmp_path / name).mkdir()
        await make(storage, described(name, tmp_path / name, site=site))

    request = pb.ListStorageElementsRequest(filter="site = there AND media = DISK", page_size=1)
    first = await storage.stub.ListStorageElements(request)
    request.page_token = first.next_page_token
    second = await storage.stub.ListStorageElements(request)

    names = [one.name for page in (first, second) for one in page.storage_elements]
    assert names == ["storageElements/b", "storageElements/c"]
    assert second.next_page_token == ""


@pytest.mark.parametrize(
    ("protocol", "address", "reason"),
    [
        ("gopher", "/tmp", "PROTOCOL_UNKNOWN"),
        ("posix", "relative/path", "ADDRESS_INVALID"),
        ("posix", "/nowhere/at/all", "STORAGE_ELEMENT_UNREACHABLE"),
    ],
)
async def test_useless_address_is_refused(storage: Storage, protocol: str, address: str, reason: str) -> None:
    assert await refusal(make(storage, described("new", address, protocol))) == reason


async def test_taken_id_is_refused(storage: Storage, tmp_path: Path) -> None:
    assert await refusal(make(storage, described("local", tmp_path))) == "STORAGE_ELEMENT_EXISTS"


async def test_change_touches_only_what_the_mask_names(storage: Storage, tmp_path: Path) -> None:
    made = await make(storage, described("disk", tmp_path, site="here", description="old"))
    made.description, made.site = "new", "elsewhere"

    changed = await change(storage, made, "description")

    assert (changed.description, changed.site) == ("new", "here")
    assert changed.etag != made.etag


async def test_change_of_an_older_state_is_refused(storage: Storage, tmp_path: Path) -> None:
    made = await make(storage, described("disk", tmp_path))
    await change(storage, made, "description")

    assert await refusal(change(storage, made, "description")) == "ETAG_MISMATCH"


async def test_what_is_fixed_cannot_be_changed(storage: Storage, tmp_path: Path) -> None:
    made = await make(storage, described("disk", tmp_path))

    assert await refusal(change(storage, made, "media")) == "FIELD_INVALID"


async def test_only_an_empty_element_is_forgotten(storage: Storage, tmp_path: Path) -> None:
    await make(storage, described("disk", tmp_path))
    upload = await storage.open()
    await storage.put(upload, b"bytes")

    async def forget(name: str) -> None:
        request = pb.DeleteStorageElementRequest(name=f"storageElements/{name}", request_id=str(uuid4()))
        await storage.stub.DeleteStorageElement(request)

    assert await refusal(forget("local")) == "STORAGE_ELEMENT_NOT_EMPTY"
    await forget("disk")
    assert await refusal(forget("disk")) == "STORAGE_ELEMENT_NOT_FOUND"


@pytest.mark.parametrize("settings", [{"check_interval": timedelta(seconds=0.1)}])
async def test_lost_disk_is_noticed_and_told(storage: Storage, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    await make(storage, described("disk", disk))
    disk.rmdir()

    async def reachable() -> bool:
        name = "storageElements/disk"
        return (await storage.stub.GetStorageElement(pb.GetStorageElementRequest(name=name))).health.reachable

    async def lost() -> bool:
        return not await reachable()

    await until(lost)
    seen = Element()
    watch = event_pb2.WatchEventsRequest(filter='kind = "storage.element.changed"', until_now=True)
    async for batch in storage.stub.WatchEvents(watch):
        for event in batch.events:
            event.resource.Unpack(seen)
    assert "no folder" in seen.health.message


class Held:
    """A database whose readers are held after they have read."""

    def __init__(self, database: Any) -> None:
        self.database = database
        self.has_read, self.go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        async with self.database.read() as connection:
            yield connection
            self.has_read.set()
            await self.go_on.wait()


async def test_list_that_was_read_before_a_change_is_not_kept_after_it(storage: Storage, tmp_path: Path) -> None:
    held: Any = Held(storage.parts.database)
    elements = Elements(held)
    reading = asyncio.create_task(elements.all())
    await held.has_read.wait()

    await make(storage, described("another", tmp_path))
    elements.forget()
    held.go_on.set()
    await reading

    assert "another" in await elements.all()
