"""Times that no calendar has are refused and change nothing."""

from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.common.v1.value_pb2 import Value
from khomas.catalog.testing import create, declare, new_file, request_id
from khomas.kit.boundary.status import reason_of

NO_TIME = Timestamp(seconds=10**13)


def verified() -> File:
    made = new_file("/hess/b")
    made.replicas[0].verify_time.CopyFrom(NO_TIME)
    return made


def begun() -> File:
    made = new_file("/hess/b")
    made.metadata["begun"].CopyFrom(Value(time=NO_TIME))
    return made


async def _import(catalog: CatalogServiceStub) -> None:
    async for _ in catalog.ImportFiles(iter([create(new_file("/hess/first")), create(verified())])):
        pass


@pytest.mark.parametrize(
    ("act", "field"),
    [
        (lambda it: it.ListFiles(pb.ListFilesRequest(dataset="datasets/d", as_of_time=NO_TIME)), "as_of_time"),
        (lambda it: it.BatchCreateFiles(create(verified())), r"files\[0\]\.replicas\[0\]\.verify_time"),
        (lambda it: it.BatchCreateFiles(create(begun())), r"files\[0\]\.metadata\[begun\]\.time"),
        (_import, r"files\[0\]\.replicas\[0\]\.verify_time"),
        (
            lambda it: it.BatchDeleteFiles(
                pb.BatchDeleteFilesRequest(
                    names=["/hess/a"],
                    reason="wrong",
                    undo_window=Duration(seconds=315_576_000_000),
                    request_id=request_id(),
                )
            ),
            "undo_window",
        ),
    ],
)
async def test_a_time_beyond_the_calendar_is_an_invalid_field(
    catalog: CatalogServiceStub, act: Callable[[CatalogServiceStub], Awaitable[object]], field: str
) -> None:
    await catalog.BatchCreateMetadataKeys(declare(begun="TIME"))
    await catalog.BatchCreateFiles(create(new_file("/hess/a"), datasets=["datasets/d"]))
    with pytest.raises(grpc.aio.AioRpcError, match=field) as refused:
        await act(catalog)
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    found = await catalog.ListFiles(pb.ListFilesRequest(directory="/hess"))
    assert "/hess/a" in [one.name for one in found.files]
    assert "/hess/b" not in [one.name for one in found.files]
