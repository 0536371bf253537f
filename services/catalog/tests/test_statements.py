"""A call for a thousand costs as many statements as a call for one, and few."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import Replica
from khomas.catalog.app import service
from khomas.catalog.testing import create, declare, new_file, request_id, value
from khomas.kit.boundary.call import current_call
from khomas.kit.database import Database, count_statements
from khomas.kit.testing import Served, serve

Act = Callable[[CatalogServiceStub, Sequence[str]], Awaitable[object]]
ALL = 1000
# Each table that a call writes is a statement on SQLite, which has no writing CTEs and no round trips either: the
# most that a commit of files can write is 8 tables, after it has looked at what is there.
MOST = {"postgresql": 6, "sqlite": 11}


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Served]:
    """What the service does by itself would be among the statements that are counted."""
    settings = {"catalog": {"poll": timedelta(hours=1)}}
    urls = {"catalog": database_url}
    async with serve(service, state=tmp_path / "state", settings=settings, database_urls=urls) as running:
        yield running


async def _create(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    """Everything that a commit can have: new directories, parents, metadata, new datasets."""
    new = [new_file(f"/made/{len(names)}{name}", metadata={"run": 1}, parents=[name]) for name in names]
    await catalog.BatchCreateFiles(create(*new, datasets=[f"datasets/made{len(names)}", f"datasets/too{len(names)}"]))


async def _create_again(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    """Files that exist join a dataset with new ones in new directories."""
    files = [new_file(name, metadata={"run": 1}) for name in names]
    new = [new_file(f"/more/{len(names)}{name}", parents=[name]) for name in names]
    await catalog.BatchCreateFiles(create(*files, *new, datasets=["datasets/full"]))


async def _change_metadata(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    updates = [pb.MetadataUpdate(name=name, set={"run": value(2)}, remove=["good"]) for name in names]
    await catalog.BatchUpdateMetadata(pb.BatchUpdateMetadataRequest(updates=updates, request_id=request_id()))


async def _change_replicas(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    copies = [
        pb.ReplicaUpdate(name=name, set=[Replica(storage_element="lyon", path="x")], remove=["local"]) for name in names
    ]
    await catalog.BatchUpdateReplicas(pb.BatchUpdateReplicasRequest(updates=copies, request_id=request_id()))


async def _delete(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    await catalog.BatchDeleteFiles(pb.BatchDeleteFilesRequest(names=names, reason="test", request_id=request_id()))


async def _undelete(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    await catalog.BatchUndeleteFiles(pb.BatchUndeleteFilesRequest(names=names, request_id=request_id()))


async def _make_dataset(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    wanted = Dataset(name=f"datasets/new{len(names)}", metadata={"run": value(1)})
    await catalog.CreateDataset(pb.CreateDatasetRequest(dataset=wanted, files=names, request_id=request_id()))


async def _fill_dataset(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    half = len(names) // 2
    await catalog.UpdateDatasetFiles(
        pb.UpdateDatasetFilesRequest(
            name="datasets/half", add=names[half:], remove=names[:half], request_id=request_id()
        )
    )


async def _get(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=names))


async def _walk(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    await catalog.ListLineage(pb.ListLineageRequest(names=names, direction=pb.ListLineageRequest.DIRECTION_DESCENDANTS))


async def _stream(catalog: CatalogServiceStub, names: Sequence[str]) -> None:
    async for _ in catalog.StreamFiles(pb.ListFilesRequest(dataset="datasets/full")):
        pass


@pytest.mark.parametrize(
    "act",
    [
        *(_create, _create_again, _change_metadata, _change_replicas, _delete, _undelete, _make_dataset, _fill_dataset),
        *(_get, _walk, _stream),
    ],
)
async def test_a_thousand_items_take_few_statements(served: Served, catalog: CatalogServiceStub, act: Act) -> None:
    database: Database = served.services["catalog"].parts
    await catalog.BatchCreateMetadataKeys(declare(run="INTEGER", good="BOOLEAN"))
    names = [f"/hess/{number % 7}/{number:04}" for number in range(ALL)]
    files = [new_file(name, metadata={"run": 1, "good": True}) for name in names]
    await catalog.BatchCreateFiles(create(*files, datasets=["datasets/full"]))
    half = pb.CreateDatasetRequest(
        dataset=Dataset(name="datasets/half"), files=names[: ALL // 2], request_id=request_id()
    )
    await catalog.CreateDataset(half)
    if act is _undelete:
        await _delete(catalog, names)

    with count_statements(database, current_call) as statements:
        await act(catalog, names)

    assert 0 < len(statements) <= MOST[database.dialect], statements
