"""What a commit of uploads asks of the catalogue and answers: rules on values alone."""

from collections.abc import Sequence

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.common.v1 import checksum_pb2
from khomas.api.storage.v1 import storage_service_pb2
from khomas.kit.errors import FieldInvalid
from khomas.storage.catalog import derived_id
from khomas.storage.uploads.arrivals import Arrival
from khomas.storage.uploads.intents import Answer, Asked, Intent
from khomas.storage.uploads.staging import Placement


def check_twice(request: storage_service_pb2.BatchCommitUploadsRequest) -> None:
    """Refuse a request that commits one uploaded file as two."""
    seen: set[tuple[str, int]] = set()
    for number, one in enumerate(request.files):
        if (one.upload, one.index) in seen:
            raise FieldInvalid.of(f"files[{number}].index", f"file {one.index} of {one.upload} is committed twice")
        seen.add((one.upload, one.index))


def _common_datasets(files: Sequence[storage_service_pb2.UploadCommit]) -> list[str]:
    common = set(files[0].datasets).intersection(*(one.datasets for one in files))
    return sorted(common)


def memberships(files: Sequence[storage_service_pb2.UploadCommit]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the datasets that only some of the files join, with those files."""
    common = set(_common_datasets(files))
    members: dict[str, list[str]] = {}
    for one in files:
        for dataset in set(one.datasets) - common:
            members.setdefault(dataset, []).append(one.name)
    return [(dataset, tuple(names)) for dataset, names in sorted(members.items())]


def planned(
    uid: str,
    asked: Asked,
    request: storage_service_pb2.BatchCommitUploadsRequest,
    arrivals: Sequence[Arrival],
    places: Sequence[str],
) -> Intent:
    """Return what is about to be done with files that have arrived, each with the path it gets."""
    pairs = list(zip(arrivals, places, strict=True))
    return Intent(
        uid=uid,
        placements=tuple(
            Placement(arrival.upload.uid, arrival.wanted.index, arrival.element.id, path, arrival.stamp)
            for arrival, path in pairs
        ),
        catalog_request=catalog_pb.BatchCreateFilesRequest(
            files=[_file(arrival, path, request.origin) for arrival, path in pairs],
            datasets=_common_datasets(request.files),
            owner=request.owner or _opened_by(arrivals) or asked.caller,
            # Who puts a file again does so by another upload.
            any_origin=not any(request.origin or arrival.upload.origin for arrival in arrivals),
            # Of the caller, too: nobody can spoil the request of another one by taking its id first.
            request_id=derived_id(asked.key, "catalog"),
        ),
        memberships=tuple(memberships(request.files)),
    )


def _opened_by(arrivals: Sequence[Arrival]) -> str:
    """Return the owner of the uploads, "" where they have several."""
    owners = {arrival.upload.owner for arrival in arrivals}
    return owners.pop() if len(owners) == 1 else ""


def _file(arrival: Arrival, path: str, origin: str) -> file_pb2.File:
    wanted, sums = arrival.wanted, arrival.sums
    return file_pb2.File(
        name=wanted.name,
        size_bytes=sums.size_bytes,
        checksums=checksum_pb2.Checksums(
            adler32=sums.adler32,
            sha256=sums.sha256,
            md5=wanted.checksums.md5,
            content_digest=sums.content_digest,
        ),
        metadata=wanted.metadata,
        parents=wanted.parents,
        origin=origin or arrival.upload.origin or arrival.upload.uid,
        replicas=[file_pb2.Replica(storage_element=arrival.element.id, path=path)],
    )


def answered(intent: Intent, uids: Sequence[str]) -> Answer:
    """Return the answer for files that the catalogue has given these uids."""
    files = zip(intent.catalog_request.files, uids, strict=True)
    return Answer(
        files=[
            storage_service_pb2.CommittedFile(
                name=file.name,
                uid=uid,
                size_bytes=file.size_bytes,
                checksums=file.checksums,
                storage_element=file.replicas[0].storage_element,
                path=file.replicas[0].path,
            )
            for file, uid in files
        ]
    )
