"""Whatever happens to files in whatever order: what must always hold."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Protocol

import grpc
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.catalog.app import service
from khomas.catalog.tables import file, file_value, replica
from khomas.catalog.testing import create, declare, new_file, request_id
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import Database
from khomas.kit.testing import serve

_NAMES = ("/hess/a", "/hess/b", "/hess/c")
_DATASET = "datasets/x"
# What may be refused, because the state of the file is not right for it.
_REFUSALS = {"FILE_EXISTS", "FILE_NOT_FOUND", "DELETION_STARTED", "FILE_IN_USE", "CHECKSUM_MISMATCH"}


class Step(Protocol):
    """Something that a caller does to one file."""

    async def __call__(self, catalog: CatalogServiceStub, name: str) -> None: ...


async def _create(catalog: CatalogServiceStub, name: str) -> None:
    await catalog.BatchCreateFiles(create(new_file(name, metadata={"run": 1}), datasets=[_DATASET]))


async def _create_longer(catalog: CatalogServiceStub, name: str) -> None:
    await catalog.BatchCreateFiles(create(new_file(name, b"longer content", metadata={"run": 2})))


async def _join(catalog: CatalogServiceStub, name: str) -> None:
    change = pb.UpdateDatasetFilesRequest(name=_DATASET, add=[name], request_id=request_id())
    await catalog.UpdateDatasetFiles(change)


async def _leave(catalog: CatalogServiceStub, name: str) -> None:
    change = pb.UpdateDatasetFilesRequest(name=_DATASET, remove=[name], request_id=request_id())
    await catalog.UpdateDatasetFiles(change)


async def _delete(catalog: CatalogServiceStub, name: str) -> None:
    await catalog.BatchDeleteFiles(pb.BatchDeleteFilesRequest(names=[name], reason="test", request_id=request_id()))


async def _delete_at_once(catalog: CatalogServiceStub, name: str) -> None:
    request = pb.BatchDeleteFilesRequest(names=[name], reason="test", request_id=request_id())
    request.undo_window.CopyFrom(Duration())
    await catalog.BatchDeleteFiles(request)


async def _undelete(catalog: CatalogServiceStub, name: str) -> None:
    await catalog.BatchUndeleteFiles(pb.BatchUndeleteFilesRequest(names=[name], request_id=request_id()))


async def _copy(catalog: CatalogServiceStub, name: str) -> None:
    update = pb.ReplicaUpdate(name=name, set=[Replica(storage_element="lyon", path=name[1:])], size_bytes=7)
    await catalog.BatchUpdateReplicas(pb.BatchUpdateReplicasRequest(updates=[update], request_id=request_id()))


async def _lose_copies(catalog: CatalogServiceStub, name: str) -> None:
    update = pb.ReplicaUpdate(name=name, remove=["local", "lyon"])
    await catalog.BatchUpdateReplicas(pb.BatchUpdateReplicasRequest(updates=[update], request_id=request_id()))


_STEPS: list[Step] = [
    *(_create, _create_longer, _join, _leave, _copy),
    *(_delete, _delete_at_once, _undelete, _lose_copies),
]


@given(st.lists(st.tuples(st.sampled_from(_STEPS), st.sampled_from(_NAMES)), min_size=5, max_size=40))
@settings(max_examples=15, deadline=None)
def test_any_history_of_files_leaves_the_catalogue_whole(history: list[tuple[Step, str]]) -> None:
    asyncio.run(_live_through(history))


async def _live_through(history: list[tuple[Step, str]]) -> None:
    with tempfile.TemporaryDirectory(prefix="khomas-") as state:
        async with serve(service, state=Path(state)) as served:
            catalog = CatalogServiceStub(served.channel)
            await catalog.BatchCreateMetadataKeys(declare(run="INTEGER"))
            await catalog.BatchCreateFiles(create(new_file("/hess/first", metadata={"run": 0}), datasets=[_DATASET]))
            for step, name in history:
                await _try(step, catalog, name)
                await _check_dataset(catalog)
            await _check_rows(served.services["catalog"].parts)


async def _try(step: Step, catalog: CatalogServiceStub, name: str) -> None:
    try:
        await step(catalog, name)
    except grpc.aio.AioRpcError as error:
        if reason_of(error) not in _REFUSALS:
            raise


async def _check_dataset(catalog: CatalogServiceStub) -> None:
    """Its count and size are those of the files that a list of it shows."""
    found = await catalog.GetDataset(pb.GetDatasetRequest(name=_DATASET))
    members = (await catalog.ListFiles(pb.ListFilesRequest(dataset=_DATASET))).files
    assert (found.file_count, found.size_bytes) == (len(members), sum(one.size_bytes for one in members))


async def _check_rows(database: Database) -> None:
    """Names are unique, every file kept its metadata, tombstones have no replicas."""
    async with database.read() as connection:
        rows = (await connection.execute(select(file.c.id, file.c.name, file.c.state))).all()
        values = (await connection.execute(select(file_value.c.file_id))).scalars().all()
        copies = set((await connection.execute(select(replica.c.file_id))).scalars())
        distinct = await connection.scalar(select(func.count(file.c.uid.distinct())))
    taken = Counter(row.name for row in rows if row.state != File.STATE_DELETED)
    assert set(taken.values()) == {1}
    assert sorted(values) == sorted(row.id for row in rows)
    assert not copies & {row.id for row in rows if row.state == File.STATE_DELETED}
    assert distinct == len(rows)
