"""What the catalogue has on one StorageElement."""

from uuid import uuid4

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File, Replica


async def made(catalog: CatalogServiceStub, *files: File) -> None:
    await catalog.BatchCreateFiles(pb.BatchCreateFilesRequest(files=files, request_id=str(uuid4())))


async def located(catalog: CatalogServiceStub, element: str, *paths: str) -> list[pb.LocatedFile]:
    request = pb.StreamReplicasRequest(storage_element=element, paths=paths)
    return [file async for answer in catalog.StreamReplicas(request) for file in answer.files]


def file(name: str, *replicas: Replica) -> File:
    one = File(name=name, size_bytes=5, replicas=replicas)
    one.checksums.adler32 = "062c0215"
    return one


async def test_replicas_of_one_storage_element_are_streamed_with_paths_and_checksums(
    catalog: CatalogServiceStub,
) -> None:
    here, there = Replica(storage_element="here", path="hess/a"), Replica(storage_element="there", path="hess/a")
    await made(
        catalog,
        file("/hess/a", here, there),
        file("/hess/b", Replica(storage_element="here", path="elsewhere/b")),
        file("/hess/c", Replica(storage_element="there", path="hess/c")),
    )

    found = await located(catalog, "here")

    assert sorted((one.name, one.replica.path) for one in found) == [("/hess/a", "hess/a"), ("/hess/b", "elsewhere/b")]
    assert {(one.size_bytes, one.adler32, one.state) for one in found} == {(5, "062c0215", File.STATE_ACTIVE)}
    assert all(one.uid and one.replica.state == Replica.STATE_AVAILABLE for one in found)


async def test_replicas_are_found_by_usual_and_by_other_paths(catalog: CatalogServiceStub) -> None:
    await made(
        catalog,
        file("/hess/a", Replica(storage_element="here", path="hess/a")),
        file("/hess/b", Replica(storage_element="here", path="elsewhere/b")),
        file("/hess/c", Replica(storage_element="here", path="hess/c")),
    )

    found = await located(catalog, "here", "hess/a", "elsewhere/b", "hess/b", "hess/unknown")

    assert sorted(one.name for one in found) == ["/hess/a", "/hess/b"]


async def test_files_that_are_to_go_are_streamed_until_they_are_gone(catalog: CatalogServiceStub) -> None:
    await made(catalog, file("/hess/a", Replica(storage_element="here", path="hess/a")))
    await catalog.BatchDeleteFiles(
        pb.BatchDeleteFilesRequest(names=["/hess/a"], reason="test", request_id=str(uuid4()))
    )

    (found,) = await located(catalog, "here")

    assert found.state == File.STATE_DELETING


async def test_thousands_come_in_several_messages(catalog: CatalogServiceStub) -> None:
    names = [f"/hess/{number:04}" for number in range(2500)]
    await made(catalog, *(file(name, Replica(storage_element="here", path=name[1:])) for name in names))

    answers = [one async for one in catalog.StreamReplicas(pb.StreamReplicasRequest(storage_element="here"))]

    assert len(answers) > 1
    assert sorted(one.name for answer in answers for one in answer.files) == names
