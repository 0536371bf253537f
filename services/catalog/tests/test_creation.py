"""Commits of files through the wire."""

import asyncio

import grpc
import pytest

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.common.v1 import event_pb2
from khomas.catalog.testing import create, declare, new_file, request_id
from khomas.kit.boundary.call import current_call
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import count_statements
from khomas.kit.testing import Served


async def names(catalog: CatalogServiceStub, **search: str) -> list[str]:
    request = pb.ListFilesRequest(**search)  # type: ignore[arg-type]  # fields of the message by name
    return [one.name for one in (await catalog.ListFiles(request)).files]


async def test_a_committed_file_is_read_back_with_everything(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER", target="TEXT", run="INTEGER", good="BOOLEAN"))
    raw = new_file("/hess/raw/1.fits", b"raw")
    made = new_file(
        "/hess/dl3/1.fits",
        b"made",
        metadata={"zenith": 45.5, "target": "Crab", "run": 23523, "good": True},
        parents=["/hess/raw/1.fits"],
        elements=["local", "lyon"],
        origin="somebody",
    )
    await catalog.BatchCreateFiles(create(raw, made))

    (result,) = (await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/dl3/1.fits"]))).results

    assert result.file.size_bytes == 4
    assert result.file.checksums.adler32 == made.checksums.adler32
    assert dict(result.file.metadata) == dict(made.metadata)
    assert list(result.file.parents) == ["/hess/raw/1.fits"]
    assert [copy.storage_element for copy in result.file.replicas] == ["local", "lyon"]
    assert result.file.replicas[0].path == "hess/dl3/1.fits"
    assert result.file.origin == "somebody"
    assert result.file.owner == "tester"


async def test_a_commit_is_all_or_nothing(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a", b"one")))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateFiles(create(new_file("/hess/b"), new_file("/hess/a", b"other")))

    assert reason_of(refused.value) == "FILE_EXISTS"
    assert await names(catalog) == ["/hess/a"]


async def test_an_equal_commit_again_counts_as_existing(catalog: CatalogServiceStub) -> None:
    first = await catalog.BatchCreateFiles(create(new_file("/hess/a", origin="job")))
    again = await catalog.BatchCreateFiles(create(new_file("/hess/a", origin="job"), new_file("/hess/b")))
    assert again.existing == 1
    assert again.uids[0] == first.uids[0]


async def test_equal_content_of_another_origin_exists_only_for_who_does_not_mind(catalog: CatalogServiceStub) -> None:
    first = await catalog.BatchCreateFiles(create(new_file("/hess/a", origin="job")))
    request = create(new_file("/hess/a", origin="other"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateFiles(request)
    assert reason_of(refused.value) == "FILE_EXISTS"
    request.any_origin = True
    again = await catalog.BatchCreateFiles(request)
    assert (again.existing, again.uids) == (1, first.uids)
    request = create(new_file("/hess/a", b"CONTENT", origin="job"))
    request.any_origin = True
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateFiles(request)
    assert reason_of(refused.value) == "FILE_EXISTS"


def requests_for(owner: str) -> tuple[pb.BatchCreateFilesRequest, pb.CreateDatasetRequest]:
    files = create(new_file("/hess/a"), datasets=["datasets/joined"])
    files.owner = owner
    made = pb.CreateDatasetRequest(dataset=Dataset(name="datasets/made"), owner=owner, request_id=request_id())
    return files, made


async def test_a_service_makes_things_for_whom_it_names(served: Served, catalog: CatalogServiceStub) -> None:
    service = CatalogServiceStub(served.channel_with(served.token(subject="service:storage")))
    files, made = requests_for("alice")
    await service.BatchCreateFiles(files)
    await service.CreateDataset(made)
    hers = 'owner = "alice"'
    assert await names(catalog, filter=hers) == ["/hess/a"]
    datasets = (await catalog.ListDatasets(pb.ListDatasetsRequest(filter=hers))).datasets
    assert [one.name for one in datasets] == ["datasets/joined", "datasets/made"]


@pytest.mark.parametrize("subject", ["bob", "job:1", "pilot:1", "host:node.example", "services:storage"])
async def test_others_than_services_make_things_for_themselves_only(
    served: Served, catalog: CatalogServiceStub, subject: str
) -> None:
    other = CatalogServiceStub(served.channel_with(served.token(subject=subject)))
    files, made = requests_for("alice")
    for call in (
        other.BatchCreateFiles(files),
        other.CreateDataset(made),
        anext(aiter(other.ImportFiles(iter([files])))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert reason_of(refused.value) == "OWNER_REFUSED"
    assert await names(catalog) == []
    files.owner = subject
    await other.BatchCreateFiles(files)
    assert await names(catalog, filter=f'owner = "{subject}"') == ["/hess/a"]


async def test_the_same_request_id_gives_the_same_answer(catalog: CatalogServiceStub) -> None:
    request = create(new_file("/hess/a"))
    assert await catalog.BatchCreateFiles(request) == await catalog.BatchCreateFiles(request)


async def test_validate_only_commits_nothing(catalog: CatalogServiceStub) -> None:
    request = create(new_file("/hess/new/a"))
    request.validate_only = True
    await catalog.BatchCreateFiles(request)
    assert await names(catalog) == []
    await catalog.BatchCreateFiles(create(new_file("/hess/new/a")))
    assert await names(catalog) == ["/hess/new/a"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([new_file("/hess/a"), new_file("/hess/a")], "DUPLICATE_NAME"),
        ([new_file("/hess/a"), new_file("/hess/a/b")], "NAME_IS_DIRECTORY"),
        ([new_file("/there/is/one/below")], "NAME_IS_DIRECTORY"),
        ([new_file("/there/is")], "NAME_IS_DIRECTORY"),
        ([new_file("/hess/a", parents=["/hess/nowhere"])], "PARENT_NOT_FOUND"),
        ([new_file("/hess/a", metadata={"zenit": 1.0})], "METADATA_KEY_UNDECLARED"),
        ([new_file("/hess/a", metadata={"zenith": "high"})], "METADATA_TYPE"),
        ([new_file("/hess/a", parents=["/hess/b"]), new_file("/hess/b", parents=["/hess/a"])], "FIELD_INVALID"),
        ([new_file("/hess/../a")], "FIELD_INVALID"),
        ([new_file("/hess/./a")], "FIELD_INVALID"),
        ([new_file("/hess/a", elements=["local", "local"])], "FIELD_INVALID"),
    ],
)
async def test_a_bad_commit_is_refused_with_its_reason(
    catalog: CatalogServiceStub, files: list[File], reason: str
) -> None:
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER"))
    await catalog.BatchCreateFiles(create(new_file("/there/is/one")))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateFiles(create(*files))

    assert reason_of(refused.value) == reason
    assert await names(catalog) == ["/there/is/one"]


async def test_a_misspelt_key_is_answered_with_the_nearest(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER"))
    with pytest.raises(grpc.aio.AioRpcError, match="did you mean: zenith"):
        await catalog.BatchCreateFiles(create(new_file("/hess/a", metadata={"zenit": 1.0})))


async def test_datasets_are_joined_and_made_when_missing(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), new_file("/hess/b"), datasets=["datasets/crab"]))
    found = await catalog.GetDataset(pb.GetDatasetRequest(name="datasets/crab"))
    assert (found.file_count, found.size_bytes) == (2, 14)
    assert await names(catalog, dataset="datasets/crab") == ["/hess/a", "/hess/b"]


async def test_known_files_join_a_new_dataset_once_whoever_commits_them(catalog: CatalogServiceStub) -> None:
    files = [new_file(f"/hess/{name}") for name in "abc"]
    await catalog.BatchCreateFiles(create(*files))
    for number in range(10):
        new = f"datasets/new{number}"
        await asyncio.gather(*[catalog.BatchCreateFiles(create(*files, datasets=[new])) for _ in range(6)])
        found = await catalog.GetDataset(pb.GetDatasetRequest(name=new))
        assert (found.file_count, found.size_bytes) == (3, 21)
        assert await names(catalog, dataset=new) == ["/hess/a", "/hess/b", "/hess/c"]
    watch = catalog.WatchEvents(event_pb2.WatchEventsRequest(until_now=True, filter='subject = "datasets/new0"'))
    kinds = [event.kind async for batch in watch for event in batch.events]
    assert kinds == ["catalog.dataset.created", "catalog.dataset.files_added"]


async def test_a_dataset_never_has_more_bytes_than_can_be_told(catalog: CatalogServiceStub) -> None:
    first, second = new_file("/hess/a"), new_file("/hess/b")
    first.size_bytes = second.size_bytes = 2**63 - 1
    together = create(first, second, datasets=["datasets/x"])
    await catalog.BatchCreateFiles(create(first, datasets=["datasets/crab"]))
    later = create(second, datasets=["datasets/crab"])
    for request in (together, later):
        with pytest.raises(grpc.aio.AioRpcError, match=r"2\^63 bytes") as refused:
            await catalog.BatchCreateFiles(request)
        assert reason_of(refused.value) == "FIELD_INVALID"
    await catalog.BatchCreateFiles(create(second))
    added = pb.UpdateDatasetFilesRequest(name="datasets/crab", add=["/hess/b"], request_id=request_id())
    with pytest.raises(grpc.aio.AioRpcError, match=r"2\^63 bytes"):
        await catalog.UpdateDatasetFiles(added)
    (found,) = (await catalog.ListDatasets(pb.ListDatasetsRequest())).datasets
    assert (found.name, found.file_count, found.size_bytes) == ("datasets/crab", 1, 2**63 - 1)


@pytest.mark.parametrize("name", ["crab", "datasets/", "datasets/a b", "datasets/../a", "datasets/" + "a" * 248])
async def test_a_dataset_that_no_contract_allows_is_not_made(catalog: CatalogServiceStub, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="is no dataset") as refused:
        await catalog.BatchCreateFiles(create(new_file("/hess/a"), datasets=[name]))
    assert reason_of(refused.value) == "FIELD_INVALID"
    assert await names(catalog) == []


async def test_an_import_answers_every_message(catalog: CatalogServiceStub) -> None:
    requests = [create(*[new_file(f"/hess/{part}/{n}") for n in range(10)]) for part in range(5)]
    answers = [answer async for answer in catalog.ImportFiles(iter(requests))]
    assert [len(answer.uids) for answer in answers] == [10] * 5


async def test_a_thousand_files_take_six_statements(served: Served, catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateMetadataKeys(declare(zenith="NUMBER"))
    await catalog.BatchCreateFiles(create(new_file("/hess/dl3/first", metadata={"zenith": 1.0})))
    files = [new_file(f"/hess/dl3/{n:06}", metadata={"zenith": float(n)}) for n in range(1000)]

    with count_statements(served.services["catalog"].parts, current_call) as statements:
        await catalog.BatchCreateFiles(create(*files))

    assert 0 < len(statements) <= 6, statements


async def test_a_thousand_files_are_read_with_four_statements(served: Served, catalog: CatalogServiceStub) -> None:
    files = [new_file(f"/hess/dl3/{n:06}") for n in range(1000)]
    await catalog.BatchCreateFiles(create(*files))
    with count_statements(served.services["catalog"].parts, current_call) as statements:
        answer = await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=[one.name for one in files]))
    assert all(result.HasField("file") for result in answer.results)
    assert 0 < len(statements) <= 4, statements


async def test_every_new_file_is_told_with_its_content(catalog: CatalogServiceStub) -> None:
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), new_file("/hess/b"), datasets=["datasets/crab"]))
    watch = catalog.WatchEvents(event_pb2.WatchEventsRequest(until_now=True))
    events = [event async for batch in watch for event in batch.events]
    kinds = sorted(event.kind for event in events)
    assert kinds == ["catalog.dataset.created", "catalog.dataset.files_added", *["catalog.file.created"] * 2]
    told = File()
    assert next(event for event in events if event.subject == "/hess/b").resource.Unpack(told)
    assert told.replicas[0].storage_element == "local"


async def test_an_unknown_file_is_a_result_not_an_error(catalog: CatalogServiceStub) -> None:
    answer = await catalog.BatchGetFiles(pb.BatchGetFilesRequest(names=["/hess/nowhere"]))
    assert answer.results[0].error.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_request_without_id_is_refused(catalog: CatalogServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await catalog.BatchCreateFiles(pb.BatchCreateFilesRequest(files=[new_file("/hess/a")]))
    assert reason_of(refused.value) == "FIELD_INVALID"
    assert request_id() != request_id()
