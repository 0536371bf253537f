"""For tests: shorthand for requests to a catalogue."""

import zlib
from collections.abc import Mapping, Sequence
from uuid import uuid4

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.api.common.v1.value_pb2 import Value

Plain = str | int | float | bool


def request_id() -> str:
    """Return a fresh one."""
    return str(uuid4())


def value(plain: Plain) -> Value:
    """Return a Value of the natural kind."""
    if isinstance(plain, bool):
        return Value(boolean=plain)
    if isinstance(plain, int):
        return Value(integer=plain)
    return Value(number=plain) if isinstance(plain, float) else Value(text=plain)


def new_file(
    name: str,
    content: bytes = b"content",
    *,
    metadata: Mapping[str, Plain] | None = None,
    parents: Sequence[str] = (),
    elements: Sequence[str] = ("local",),
    origin: str = "",
) -> File:
    """Return a file to commit, with one replica on every StorageElement."""
    return File(
        name=name,
        size_bytes=len(content),
        checksums=Checksums(adler32=f"{zlib.adler32(content):08x}"),
        metadata={key: value(plain) for key, plain in (metadata or {}).items()},
        parents=parents,
        replicas=[Replica(storage_element=element, path=name[1:]) for element in elements],
        origin=origin,
    )


def create(*files: File, datasets: Sequence[str] = ()) -> pb.BatchCreateFilesRequest:
    """Return a request that commits files."""
    return pb.BatchCreateFilesRequest(files=files, datasets=datasets, request_id=request_id())


def declare(**types: str) -> pb.BatchCreateMetadataKeysRequest:
    """Return a request that declares keys: `declare(zenith="NUMBER")`."""
    keys = [
        MetadataKey(name=f"metadataKeys/{key}", type=MetadataKey.Type.Value(f"TYPE_{type_}"))
        for key, type_ in types.items()
    ]
    return pb.BatchCreateMetadataKeysRequest(metadata_keys=keys, request_id=request_id())
