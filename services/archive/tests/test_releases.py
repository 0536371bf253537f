"""Releases as people ask for them."""

from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from khomas.api.archive.v1 import archive_service_pb2 as pb
from khomas.api.archive.v1.archive_service_pb2_grpc import ArchiveServiceStub
from khomas.api.archive.v1.release_pb2 import Release
from khomas.api.catalog.v1.catalog_service_pb2 import ListFilesRequest, UpdateDatasetFilesRequest
from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.archive.testing import Archive, event_rule
from khomas.kit.boundary.status import reason_of

DATASET = "datasets/hess/dl3"
NAME = "releases/crab/1"


@pytest.fixture
async def ready(archive: Archive, run_file: Path) -> Archive:
    """Give an archive with one release that is ready."""
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})
    await archive.create(NAME, DATASET)
    assert (await archive.settled(NAME)).state == Release.STATE_READY
    return archive


async def withdraw(archive: Archive, name: str = NAME) -> Release:
    request = pb.WithdrawReleaseRequest(name=name, reason="wrong calibration", request_id=str(uuid4()))
    return await archive.stub.WithdrawRelease(request)


async def test_version_is_never_made_twice(ready: Archive) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ready.create(NAME, DATASET)

    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.ALREADY_EXISTS, "RELEASE_EXISTS")


async def test_retry_with_same_request_id_returns_first_answer(ready: Archive) -> None:
    request_id = str(uuid4())
    first = await ready.create("releases/crab/2", DATASET, request_id=request_id)
    await ready.settled("releases/crab/2")

    assert await ready.create("releases/crab/2", DATASET, request_id=request_id) == first


async def test_retry_returns_first_answer_after_the_dataset_was_emptied(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {"/hess/a.fits.gz": run_file})
    request_id = str(uuid4())
    first = await archive.create(NAME, DATASET, request_id=request_id)
    emptied = UpdateDatasetFilesRequest(name=DATASET, remove=["/hess/a.fits.gz"], request_id=str(uuid4()))
    await archive.catalog.UpdateDatasetFiles(emptied)

    assert await archive.create(NAME, DATASET, request_id=request_id) == first


async def test_repeated_export_returns_first_answer_after_the_release_was_withdrawn(ready: Archive) -> None:
    request = pb.ExportReleaseRequest(name=NAME, exporter="obscore", request_id=str(uuid4()))
    first = await ready.stub.ExportRelease(request)
    await withdraw(ready)

    assert await ready.stub.ExportRelease(request) == first


@pytest.mark.parametrize("dataset", ["datasets/nothing", "datasets/empty"])
async def test_dataset_without_files_cannot_be_released(archive: Archive, run_file: Path, dataset: str) -> None:
    await archive.store(DATASET, {"/hess/a.fits.gz": run_file})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await archive.create(NAME, dataset)

    assert reason_of(refused.value) == "DATASET_EMPTY"
    assert not (await archive.stub.ListReleases(pb.ListReleasesRequest())).releases


async def test_mapping_that_cannot_work_is_refused_before_anything_is_made(archive: Archive) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await archive.create(NAME, DATASET, event_rule(columns={"s_ra": "RA_PNT"}))

    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "MAPPING_INVALID")


async def test_validation_tells_problems_and_makes_nothing(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})

    good = await archive.create(NAME, DATASET, validate_only=True)
    bad = await archive.create(NAME, DATASET, event_rule(columns={"obs_id": "@NOTHING"}), validate_only=True)

    assert (list(good.problems), good.record_count, len(good.products)) == ([], 1, 1)
    assert len(bad.problems) == 1
    assert not (await archive.stub.ListReleases(pb.ListReleasesRequest())).releases
    assert not (await archive.catalog.ListFiles(ListFilesRequest(directory="/hess/releases"))).files


async def test_life_of_a_release_is_told_by_events(ready: Archive) -> None:
    await ready.publish(NAME)
    again = await ready.publish(NAME)
    await withdraw(ready)

    stream = ready.stub.WatchEvents(WatchEventsRequest(until_now=True))
    events = [event async for answer in stream for event in answer.events]
    states = []
    for event in events:
        release = Release()
        assert event.resource.Unpack(release)
        states.append(Release.State.Name(release.state).removeprefix("STATE_"))
    assert states == ["PREPARING", "READY", "PUBLISHED", "WITHDRAWN"]
    assert {(event.kind, event.subject) for event in events} == {("archive.release.changed", NAME)}
    assert again.HasField("publish_time")


async def test_withdrawn_release_keeps_record_and_files_but_offers_nothing(ready: Archive) -> None:
    await ready.publish(NAME)
    await withdraw(ready)

    release = await ready.get(NAME)
    assert (release.state, len(release.products)) == (Release.STATE_WITHDRAWN, 1)
    assert (await ready.file(release.products[0].file)).name
    for refused_call in (ready.publish(NAME), ready.records(NAME), ready.export(NAME, "obscore")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await refused_call
        assert reason_of(refused.value) == "RELEASE_STATE"


async def test_failed_release_cannot_be_published(archive: Archive, run_file: Path) -> None:
    await archive.store(DATASET, {f"/hess/dl3/{run_file.name}": run_file})
    await archive.create(NAME, DATASET, event_rule(columns={"obs_id": "@NOTHING"}))
    await archive.settled(NAME)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await archive.publish(NAME)

    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "RELEASE_STATE")


async def test_records_are_for_everybody_once_published(ready: Archive) -> None:
    reader = ArchiveServiceStub(ready.served.channel_for("archive.read"))
    request = pb.StreamRecordsRequest(name=NAME)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        [answer async for answer in reader.StreamRecords(request)]
    await ready.publish(NAME)
    published = [record async for answer in reader.StreamRecords(request) for record in answer.records]

    assert reason_of(refused.value) == "RELEASE_STATE"
    assert [record.obs_id for record in published] == ["42"]


async def test_list_is_newest_first_and_filtered(ready: Archive) -> None:
    await ready.create("releases/crab/2", DATASET)
    await ready.settled("releases/crab/2")
    await ready.publish(NAME)

    listed = await ready.stub.ListReleases(pb.ListReleasesRequest())
    published = await ready.stub.ListReleases(pb.ListReleasesRequest(filter=f'state = PUBLISHED AND name = "{NAME}"'))
    page = await ready.stub.ListReleases(pb.ListReleasesRequest(page_size=1))

    assert [release.name for release in listed.releases] == ["releases/crab/2", NAME]
    assert [release.name for release in published.releases] == [NAME]
    assert ([release.name for release in page.releases], page.next_page_token != "") == (["releases/crab/2"], True)


async def test_unknown_release_is_not_found(archive: Archive) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await archive.get("releases/crab/9")

    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.NOT_FOUND, "RELEASE_NOT_FOUND")


async def test_ready_release_explains_how_to_publish_it(ready: Archive) -> None:
    explained = await ready.stub.ExplainRelease(pb.ExplainReleaseRequest(name=NAME))

    assert (explained.state, explained.reason) == ("READY", "WAIT_PUBLICATION")
    assert explained.remedies[0].command == "khomas release publish crab/1"


@pytest.mark.parametrize("validate_only", [False, True])
async def test_nobody_releases_what_they_may_not_read(archive: Archive, run_file: Path, validate_only: bool) -> None:
    await archive.store(DATASET, {"/hess/dl3/a.fits.gz": run_file, "/hess/embargo/b.fits.gz": run_file})
    request = pb.CreateReleaseRequest(
        release=Release(name=NAME, title="Simulated", dataset=DATASET, authority="hess.example"),
        request_id=str(uuid4()),
    )
    request.release.mapping.rules.append(event_rule())
    request.validate_only = validate_only
    some = archive.served.channel_for("archive.write", "storage.read:/hess/dl3")
    with pytest.raises(grpc.aio.AioRpcError, match=r"/hess/embargo/b\.fits\.gz") as refused:
        await ArchiveServiceStub(some).CreateRelease(request)
    assert reason_of(refused.value) == "CAPABILITY_MISSING"
    both = archive.served.channel_for("archive.write", "storage.read:/hess/dl3", "storage.read:/hess/embargo")
    await ArchiveServiceStub(both).CreateRelease(request)
