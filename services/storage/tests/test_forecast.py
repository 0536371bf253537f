"""When StorageElements will be full."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import insert, select

from khomas.api.storage.v1 import storage_element_pb2
from khomas.api.storage.v1 import storage_service_pb2 as pb
from khomas.storage.elements.forecast import full_time, note
from khomas.storage.tables import space_sample
from khomas.storage.testing import Storage, until

NOW = datetime(2004, 10, 14, tzinfo=UTC)
GIB = 1 << 30


async def local(storage: Storage) -> storage_element_pb2.StorageElement:
    request = pb.GetStorageElementRequest(name="storageElements/local")
    return await storage.stub.GetStorageElement(request)


async def sampled(storage: Storage, used_bytes: int, age: timedelta) -> None:
    row = {"storage_element": "local", "sample_time": datetime.now(UTC) - age, "used_bytes": used_bytes}
    async with storage.parts.database.write() as connection:
        await connection.execute(insert(space_sample), row)


async def filled(storage: Storage, used_bytes: int) -> None:
    """Store so much, and wait until it is known."""
    await storage.store("/hess/file", b"x" * used_bytes)

    async def known() -> bool:
        return (await local(storage)).space.used_bytes == used_bytes

    await until(known, 30)


async def test_element_that_fills_tells_when_it_will_be_full(storage: Storage) -> None:
    await filled(storage, 3000)
    await sampled(storage, 1000, timedelta(days=2))
    element = await local(storage)
    element.capacity_bytes = 13_000
    mask = FieldMask(paths=["capacity_bytes"])
    request = pb.UpdateStorageElementRequest(storage_element=element, update_mask=mask, request_id=str(uuid4()))
    await storage.stub.UpdateStorageElement(request)

    space = (await local(storage)).space

    assert space.growth_bytes_per_day == 1000
    assert abs(space.full_time.ToDatetime(UTC) - datetime.now(UTC) - timedelta(days=10)) < timedelta(minutes=5)


async def test_element_that_is_new_or_shrinks_is_not_foreseen_to_be_full(storage: Storage) -> None:
    await filled(storage, 3000)
    new = (await local(storage)).space
    await sampled(storage, 5000, timedelta(days=1))
    shrinking = (await local(storage)).space

    assert (new.growth_bytes_per_day, new.HasField("full_time")) == (0, False)
    assert (shrinking.growth_bytes_per_day, shrinking.HasField("full_time")) == (-2000, False)


async def test_samples_are_taken_once_an_hour_and_forgotten_after_a_week(storage: Storage) -> None:
    async with storage.parts.database.write() as connection:
        for hours in (0, 0.5, 1, 24 * 7, 24 * 7 + 2):
            await note(connection, ["far"], NOW + timedelta(hours=hours))
        times = (
            select(space_sample.c.sample_time).where(space_sample.c.storage_element == "far").order_by("sample_time")
        )
        kept = (await connection.execute(times)).scalars().all()

    assert kept == [NOW + timedelta(hours=24 * 7), NOW + timedelta(hours=24 * 7 + 2)]


@pytest.mark.parametrize(
    ("growth", "room", "days"),
    [(1 * GIB, 10 * GIB, 10), (1 * GIB, 0, 0), (1 * GIB, -GIB, 0), (0, GIB, None), (1, None, None), (1, 10**12, None)],
)
def test_time_is_told_where_it_can_be_known(growth: float, room: int | None, days: int | None) -> None:
    assert full_time(growth, room, NOW) == (None if days is None else NOW + timedelta(days=days))
