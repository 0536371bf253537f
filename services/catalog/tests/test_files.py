"""Search, directories, changes, deletion and lineage through the wire."""

import asyncio
from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1 import event_pb2
from khomas.catalog.testing import create, declare, new_file, request_id, value
from khomas.kit.boundary.status import reason_of


async def names(catalog: CatalogServiceStub, **search: str) -> list[str]:
    request = pb.ListFilesRequest(**search)  # type: ignore[arg-type]  # fields of the message by name
    return [one.name for one in (await catalog.ListFiles(request)).files]


@pytest.fixture
async def runs(catalog: CatalogServiceStub) -> CatalogServiceStub:
    """Give a catalogue with three runs and a note."""
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER", target="TEXT", run="INTEGER", good="BOOLEAN"))
    await catalog.BatchCreateFiles(
        create(
            new_file("/hess/raw/1.fits", metadata={"zenith": 20.0, "target": "Crab", "run": 1, "good": True}),
            new_file("/hess/raw/2.fits", metadata={"zenith": 45.0, "target": "Crab Nebula", "run": 2, "good": False}),
            new_file("/hess/raw/deep/3.fits", metadata={"zenith": 60.0, "target": "PKS 2155", "run": 3}),
            new_file("/hess/notes.txt", b"a longer text", elements=["lyon"]),
        )
    )
    return catalog


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("metadata.zenith > 40", ["/hess/raw/2.fits", "/hess/raw/deep/3.fits"]),
        ('metadata.zenith > 40 AND metadata.target = "Crab*"', ["/hess/raw/2.fits"]),
        ("metadata.run = 3", ["/hess/raw/deep/3.fits"]),
        ("metadata.good = true", ["/hess/raw/1.fits"]),
        ("metadata:good", ["/hess/raw/1.fits", "/hess/raw/2.fits"]),
        ("storage_element = lyon", ["/hess/notes.txt"]),
        ("size_bytes > 10", ["/hess/notes.txt"]),
        ('name = "*.fits" AND NOT metadata.target = "Crab"', ["/hess/raw/2.fits", "/hess/raw/deep/3.fits"]),
        ("owner = nobody", []),
    ],
)
async def test_a_search_finds_what_matches(runs: CatalogServiceStub, text: str, found: list[str]) -> None:
    assert await names(runs, filter=text) == found


async def test_a_file_is_found_by_its_uid_and_by_a_part_of_it(runs: CatalogServiceStub) -> None:
    (one,) = (await runs.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/notes.txt"]))).results
    (same,) = (await runs.BatchGetFiles(pb.BatchGetFilesRequest(names=[f"files/{one.file.uid}"]))).results
    assert same == one
    assert await names(runs, filter=f'uid = "{one.file.uid}"') == ["/hess/notes.txt"]
    assert await names(runs, filter=f'uid:"{one.file.uid[-12:]}"') == ["/hess/notes.txt"]
    assert await names(runs, filter='uid = "none"') == []


async def test_a_misspelt_key_in_a_filter_is_answered_with_the_nearest(runs: CatalogServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"metadata\.zenith") as refused:
        await names(runs, filter="metadata.zenit > 3")
    assert reason_of(refused.value) == "FILTER_INVALID"


async def test_a_search_below_a_directory_stays_there(runs: CatalogServiceStub) -> None:
    await runs.BatchCreateFiles(create(new_file("/hess/raw2/x")))
    assert await names(runs, directory="/hess/raw") == ["/hess/raw/1.fits", "/hess/raw/2.fits", "/hess/raw/deep/3.fits"]


async def test_a_slash_at_the_end_of_a_directory_changes_nothing(runs: CatalogServiceStub) -> None:
    assert await names(runs, directory="/hess/raw/") == await names(runs, directory="/hess/raw")
    plain = await runs.ListDirectory(pb.ListDirectoryRequest(directory="/hess/raw"))
    assert await runs.ListDirectory(pb.ListDirectoryRequest(directory="/hess/raw/")) == plain


@pytest.mark.parametrize("text", ['name = "*raw*" AND NOT owner = "state"', 'metadata.target != "some state"'])
async def test_a_filter_that_only_mentions_the_state_leaves_deleted_files_out(
    runs: CatalogServiceStub, text: str
) -> None:
    await runs.BatchDeleteFiles(delete("/hess/raw/1.fits"))
    assert "/hess/raw/1.fits" not in await names(runs, filter=text)
    assert await names(runs, filter="state = DELETING") == ["/hess/raw/1.fits"]


async def test_files_come_in_the_order_of_a_key(runs: CatalogServiceStub) -> None:
    found = await names(runs, order_by="metadata.zenith desc", filter="metadata:zenith")
    assert found == ["/hess/raw/deep/3.fits", "/hess/raw/2.fits", "/hess/raw/1.fits"]


async def test_pages_together_are_the_whole_list(runs: CatalogServiceStub) -> None:
    first = await runs.ListFiles(pb.ListFilesRequest(page_size=3))
    rest = await runs.ListFiles(pb.ListFilesRequest(page_size=3, page_token=first.next_page_token))
    assert [one.name for one in (*first.files, *rest.files)] == await names(runs)
    assert not rest.next_page_token


async def test_a_stream_gives_everything(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(*[new_file(f"/hess/{n:05}") for n in range(4500)]))
    stream = catalog.StreamFiles(pb.ListFilesRequest(view=pb.FILE_VIEW_BASIC))
    found = [one.name async for answer in stream for one in answer.files]
    assert found == [f"/hess/{n:05}" for n in range(4500)]


async def test_a_directory_lists_files_and_directories_by_name(runs: CatalogServiceStub) -> None:
    answer = await runs.ListDirectory(pb.ListDirectoryRequest(directory="/hess/raw"))
    assert [(entry.name, entry.directory) for entry in answer.entries] == [
        ("/hess/raw/1.fits", False),
        ("/hess/raw/2.fits", False),
        ("/hess/raw/deep", True),
    ]
    top = await runs.ListDirectory(pb.ListDirectoryRequest(directory="/"))
    assert [entry.name for entry in top.entries] == ["/hess"]


async def test_metadata_is_set_and_removed(runs: CatalogServiceStub) -> None:
    change = pb.MetadataUpdate(name="/hess/raw/1.fits", set={"zenith": value(30)}, remove=["target"])
    await runs.BatchUpdateMetadata(pb.BatchUpdateMetadataRequest(updates=[change], request_id=request_id()))
    (result,) = (await runs.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/raw/1.fits"]))).results
    assert result.file.metadata["zenith"].number == 30.0
    assert "target" not in result.file.metadata
    assert result.file.etag == "2"


async def test_a_change_with_an_old_etag_is_refused(runs: CatalogServiceStub) -> None:
    change = pb.MetadataUpdate(name="/hess/raw/1.fits", set={"zenith": value(30)}, etag="0")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await runs.BatchUpdateMetadata(pb.BatchUpdateMetadataRequest(updates=[change], request_id=request_id()))
    assert reason_of(refused.value) == "ETAG_MISMATCH"


def replicas(*updates: pb.ReplicaUpdate) -> pb.BatchUpdateReplicasRequest:
    return pb.BatchUpdateReplicasRequest(updates=updates, request_id=request_id())


async def test_a_replica_is_added_only_with_the_right_checksum(runs: CatalogServiceStub) -> None:
    copy = Replica(storage_element="lyon", path="hess/raw/1.fits")
    wrong = pb.ReplicaUpdate(name="/hess/raw/1.fits", set=[copy], size_bytes=7, adler32="00000001")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await runs.BatchUpdateReplicas(replicas(wrong))
    assert reason_of(refused.value) == "CHECKSUM_MISMATCH"

    short = pb.ReplicaUpdate(name="/hess/raw/1.fits", set=[copy], size_bytes=6)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await runs.BatchUpdateReplicas(replicas(short))
    assert reason_of(refused.value) == "CHECKSUM_MISMATCH"

    right = pb.ReplicaUpdate(name="/hess/raw/1.fits", set=[copy])
    await runs.BatchUpdateReplicas(replicas(right))
    (result,) = (await runs.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/raw/1.fits"]))).results
    assert [one.storage_element for one in result.file.replicas] == ["local", "lyon"]


def delete(*lfns: str, window: int | None = None, force: bool = False) -> pb.BatchDeleteFilesRequest:
    return pb.BatchDeleteFilesRequest(
        names=lfns,
        reason="no longer needed",
        force=force,
        undo_window=None if window is None else Duration(seconds=window),
        request_id=request_id(),
    )


async def test_a_deleted_file_leaves_the_lists_and_can_be_brought_back(runs: CatalogServiceStub) -> None:
    answer = await runs.BatchDeleteFiles(delete("/hess/raw/1.fits"))
    assert answer.files[0].deletion.reason == "no longer needed"
    assert "/hess/raw/1.fits" not in await names(runs)
    undo = pb.BatchUndeleteFilesRequest(names=["/hess/raw/1.fits"], request_id=request_id())
    await runs.BatchUndeleteFiles(undo)
    assert "/hess/raw/1.fits" in await names(runs)


async def test_a_file_is_a_tombstone_once_its_last_replica_is_gone(runs: CatalogServiceStub) -> None:
    (gone,) = (await runs.BatchDeleteFiles(delete("/hess/raw/1.fits", window=0))).files
    answer = await runs.BatchUpdateReplicas(replicas(pb.ReplicaUpdate(name=f"files/{gone.uid}", remove=["local"])))
    assert answer.deleted_files == 1
    (result,) = (await runs.BatchGetFiles(pb.BatchGetFilesRequest(names=[f"files/{gone.uid}"]))).results
    assert result.file.state == File.STATE_DELETED
    # The name is free again.
    await runs.BatchCreateFiles(create(new_file("/hess/raw/1.fits", b"new")))


async def test_there_is_no_undo_after_the_window(runs: CatalogServiceStub) -> None:
    await runs.BatchDeleteFiles(delete("/hess/raw/1.fits", window=0))
    undo = pb.BatchUndeleteFilesRequest(names=["/hess/raw/1.fits"], request_id=request_id())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await runs.BatchUndeleteFiles(undo)
    assert reason_of(refused.value) == "DELETION_STARTED"


async def test_a_file_without_replicas_is_purged_by_the_catalogue_itself(catalog: CatalogServiceStub) -> None:
    # More files than a batch of the purge wait for the storage, since before this one.
    waiting = [new_file(f"/hess/waiting/{n}") for n in range(1001)]
    await catalog.BatchCreateFiles(create(new_file("/hess/a", elements=[]), *waiting))
    await catalog.BatchDeleteFiles(delete(*[one.name for one in waiting], window=0))
    (gone,) = (await catalog.BatchDeleteFiles(delete("/hess/a", window=0))).files
    async with asyncio.timeout(10):
        while True:
            (result,) = (await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=[f"files/{gone.uid}"]))).results
            if result.file.state == File.STATE_DELETED:
                break
            await asyncio.sleep(0.05)


async def test_a_file_that_others_were_made_from_is_deleted_only_by_force(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), new_file("/hess/b", parents=["/hess/a"])))
    with pytest.raises(grpc.aio.AioRpcError, match="/hess/b") as refused:
        await catalog.BatchDeleteFiles(delete("/hess/a"))
    assert reason_of(refused.value) == "FILE_IN_USE"
    await catalog.BatchDeleteFiles(delete("/hess/a", force=True))


async def test_a_deletion_changes_datasets_and_its_undo_restores_them(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), new_file("/hess/b"), datasets=["datasets/x"]))
    await catalog.BatchDeleteFiles(delete("/hess/a"))
    assert (await catalog.GetDataset(pb.GetDatasetRequest(name="datasets/x"))).file_count == 1
    await catalog.BatchUndeleteFiles(pb.BatchUndeleteFilesRequest(names=["/hess/a"], request_id=request_id()))
    found = await catalog.GetDataset(pb.GetDatasetRequest(name="datasets/x"))
    assert (found.file_count, found.size_bytes) == (2, 14)
    assert await names(catalog, dataset="datasets/x") == ["/hess/a", "/hess/b"]


async def test_a_deletion_and_its_undo_are_told_for_each_dataset(catalog: CatalogServiceStub) -> None:
    files = [new_file(f"/hess/{name}") for name in "abc"]
    await catalog.BatchCreateFiles(create(*files, datasets=["datasets/x", "datasets/y"]))
    await catalog.BatchDeleteFiles(delete("/hess/b", "/hess/a"))
    undo = pb.BatchUndeleteFilesRequest(names=["/hess/a"], request_id=request_id())
    await catalog.BatchUndeleteFiles(undo)
    told = []
    watch = event_pb2.WatchEventsRequest(until_now=True, filter='kind = "catalog.dataset.files_*"')
    async for batch in catalog.WatchEvents(watch):
        for event in batch.events:
            change = pb.DatasetChange()
            assert event.resource.Unpack(change)
            told.append((event.subject, list(change.added), list(change.removed)))
    assert told[2:] == [
        ("datasets/x", [], ["/hess/a", "/hess/b"]),
        ("datasets/y", [], ["/hess/a", "/hess/b"]),
        ("datasets/x", ["/hess/a"], []),
        ("datasets/y", ["/hess/a"], []),
    ]


async def test_many_files_that_move_together_are_told_by_several_events(catalog: CatalogServiceStub) -> None:
    files = [new_file(f"/hess/{n:04}") for n in range(2001)]
    await catalog.BatchCreateFiles(create(*files, datasets=["datasets/x"]))
    await catalog.BatchDeleteFiles(delete(*[one.name for one in files[:1000]]))
    watch = event_pb2.WatchEventsRequest(until_now=True, filter='kind = "catalog.dataset.files_*"')
    told = []
    async for batch in catalog.WatchEvents(watch):
        for event in batch.events:
            change = pb.DatasetChange()
            assert event.resource.Unpack(change)
            told.append(change)
    assert [len(one.added) for one in told] == [1000, 1000, 1, 0]
    assert [len(one.removed) for one in told] == [0, 0, 0, 1000]
    assert [name for one in told for name in one.added] == [one.name for one in files]


async def test_the_files_of_a_closed_dataset_stay_even_against_force(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), new_file("/hess/b"), datasets=["datasets/x"]))
    await catalog.BatchDeleteFiles(delete("/hess/b"))
    await catalog.CloseDataset(pb.CloseDatasetRequest(name="datasets/x", request_id=request_id()))
    for force in (False, True):
        with pytest.raises(grpc.aio.AioRpcError, match="datasets/x") as refused:
            await catalog.BatchDeleteFiles(delete("/hess/a", force=force))
        assert reason_of(refused.value) == "FILE_IN_CLOSED_DATASET"
    # What left it before it was closed does not come back into it.
    await catalog.BatchUndeleteFiles(pb.BatchUndeleteFilesRequest(names=["/hess/b"], request_id=request_id()))
    assert await names(catalog, dataset="datasets/x") == ["/hess/a"]
    assert (await catalog.GetDataset(pb.GetDatasetRequest(name="datasets/x"))).file_count == 1


async def test_a_dataset_is_listed_as_of_a_moment(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), datasets=["datasets/x"]))
    before = datetime.now(UTC)
    change = pb.UpdateDatasetFilesRequest(
        name="datasets/x", remove=["/hess/a"], add=["/hess/b"], request_id=request_id()
    )
    await catalog.BatchCreateFiles(create(new_file("/hess/b")))
    await catalog.UpdateDatasetFiles(change)
    search = pb.ListFilesRequest(dataset="datasets/x")
    assert [one.name for one in (await catalog.ListFiles(search)).files] == ["/hess/b"]
    search.as_of_time.FromDatetime(before)
    assert [one.name for one in (await catalog.ListFiles(search)).files] == ["/hess/a"]


async def test_a_closed_dataset_takes_nothing(catalog: CatalogServiceStub) -> None:
    new = pb.CreateDatasetRequest(dataset=Dataset(name="datasets/x"), request_id=request_id())
    await catalog.CreateDataset(new)
    closed = await catalog.CloseDataset(pb.CloseDatasetRequest(name="datasets/x", request_id=request_id()))
    assert closed.state == Dataset.STATE_CLOSED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateFiles(create(new_file("/hess/a"), datasets=["datasets/x"]))
    assert reason_of(refused.value) == "DATASET_CLOSED"
    assert await names(catalog) == []


async def test_datasets_are_searched_by_their_metadata(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateMetadataKeys(declare(level="INTEGER"))
    for level in (3, 4):
        dataset = Dataset(name=f"datasets/{level}", metadata={"level": value(level)})
        await catalog.CreateDataset(pb.CreateDatasetRequest(dataset=dataset, request_id=request_id()))
    answer = await catalog.ListDatasets(pb.ListDatasetsRequest(filter="metadata.level > 3"))
    assert [(one.name, one.metadata["level"].integer) for one in answer.datasets] == [("datasets/4", 4)]


async def test_lineage_is_walked_both_ways_with_the_shortest_depth(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(
        create(
            new_file("/raw/1"),
            new_file("/raw/2"),
            new_file("/dl3/1", parents=["/raw/1"]),
            new_file("/dl3/2", parents=["/raw/2"]),
            new_file("/sky", parents=["/dl3/1", "/dl3/2"]),
        )
    )
    up = pb.ListLineageRequest(names=["/sky"], direction=pb.ListLineageRequest.DIRECTION_ANCESTORS)
    answer = await catalog.ListLineage(up)
    assert sorted(one.name for one in answer.files) == ["/dl3/1", "/dl3/2", "/raw/1", "/raw/2"]
    assert [(edge.parent, edge.child, edge.depth) for edge in answer.edges if edge.depth == 1] == [
        ("/dl3/1", "/sky", 1),
        ("/dl3/2", "/sky", 1),
    ]
    down = pb.ListLineageRequest(names=["/raw/1"], direction=pb.ListLineageRequest.DIRECTION_DESCENDANTS)
    assert sorted(one.name for one in (await catalog.ListLineage(down)).files) == ["/dl3/1", "/sky"]
    near = pb.ListLineageRequest(names=["/sky"], direction=pb.ListLineageRequest.DIRECTION_ANCESTORS, max_depth=1)
    assert sorted(one.name for one in (await catalog.ListLineage(near)).files) == ["/dl3/1", "/dl3/2"]


async def test_a_key_is_declared_once(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER"))
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateMetadataKeys(declare(zenith="TEXT"))
    assert reason_of(refused.value) == "METADATA_KEY_CONFLICT"
    answer = await catalog.ListMetadataKeys(pb.ListMetadataKeysRequest())
    assert [key.name for key in answer.metadata_keys] == ["metadataKeys/zenith"]


async def test_a_key_is_no_group_of_keys(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateMetadataKeys(declare(**{"fits.object": "TEXT"}))
    with pytest.raises(grpc.aio.AioRpcError, match=r"cannot declare fits and fits\.object"):
        await catalog.BatchCreateMetadataKeys(declare(fits="TEXT"))
    await catalog.BatchCreateFiles(create(new_file("/hess/a", metadata={"fits.object": "Crab"})))
    assert await names(catalog, filter="metadata.fits.object = Crab") == ["/hess/a"]


async def test_a_key_stands_once_in_a_call(catalog: CatalogServiceStub) -> None:
    request = declare(zenith="NUMBER")
    request.metadata_keys.add(name="metadataKeys/zenith", type=request.metadata_keys[0].type, unit="deg")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateMetadataKeys(request)
    assert reason_of(refused.value) == "DUPLICATE_NAME"
