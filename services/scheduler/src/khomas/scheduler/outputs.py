"""From the files of an exit record to files of the catalogue."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from khomas.api.catalog.v1.dataset_pb2 import MetadataKey
from khomas.api.common.v1.checksum_pb2 import Checksums
from khomas.api.common.v1.value_pb2 import Value
from khomas.api.storage.v1.storage_service_pb2 import CommittedFile, UploadCommit
from khomas.kit.expressions import Scalar
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.records import Attempt

_CHECKSUMS = ("adler32", "sha256", "content_digest")


class MetadataUnfit(ValueError):
    """A value that the declared type of its key does not take."""


def commits(
    blueprint: Blueprint, attempt: Attempt, values: Mapping[str, Scalar], types: Mapping[str, int]
) -> list[UploadCommit]:
    """What to commit: all files of the attempt that go to the catalogue. Raises `MetadataUnfit`."""
    return [
        UploadCommit(
            upload=attempt.upload,
            index=made["index"],
            name=blueprint.output_name(made["output"], made["path"], values),
            checksums=_checksums(made),
            size_bytes=made["size_bytes"],
            metadata=_metadata(blueprint, made, values, types),
            parents=attempt.inputs,
            datasets=blueprint.spec.outputs[made["output"]].datasets,
        )
        for made in catalogued(attempt)
    ]


def catalogued(attempt: Attempt) -> list[dict[str, Any]]:
    """Files that go to the catalogue: none of a failed attempt."""
    if attempt.record.get("state") != "SUCCEEDED":
        return []
    return [made for made in attempt.record.get("outputs", []) if not made["sandbox"]]


def kept(attempt: Attempt) -> list[dict[str, Any]]:
    """Files that stay with the job."""
    return [made for made in attempt.record.get("outputs", []) if made["sandbox"]]


def output_files(attempt: Attempt, committed: Sequence[CommittedFile]) -> list[dict[str, Any]]:
    """The files of an attempt as its row keeps them; `committed` in the order of `catalogued`."""
    stored = [_file(made) for made in kept(attempt)]
    for made, file in zip(catalogued(attempt), committed, strict=True):
        place = {"name": file.name, "file_uid": file.uid, "storage_element": file.storage_element}
        stored.append({**_file(made), **place, "sandbox": False})
    return sorted(stored, key=lambda one: (one["output"], one["path"]))


def _file(made: Mapping[str, Any]) -> dict[str, Any]:
    sums = {key: made[key] for key in _CHECKSUMS if made.get(key)}
    size = {"path": made["path"], "size_bytes": made["size_bytes"], "output": made["output"]}
    return {**size, "checksums": sums, "sandbox": True}


def _checksums(made: Mapping[str, Any]) -> Checksums:
    return Checksums(**{key: made[key] for key in _CHECKSUMS if made.get(key)})


def _metadata(
    blueprint: Blueprint, made: Mapping[str, Any], values: Mapping[str, Scalar], types: Mapping[str, int]
) -> dict[str, Value]:
    output = blueprint.spec.outputs[made["output"]]
    cards = _cards(output.header_metadata, made.get("header") or {})
    given = blueprint.output_metadata(made["output"], made["path"], values)
    return {key: typed(key, value, types.get(key, MetadataKey.TYPE_TEXT)) for key, value in {**cards, **given}.items()}


def _cards(wanted: Iterable[str], header: Mapping[str, Any]) -> dict[str, Any]:
    """Values of FITS cards by metadata key: "CARD=key", or the card in lower case."""
    found = {}
    for entry in wanted:
        card, _, key = entry.partition("=")
        if card in header:
            found[key or card.lower()] = header[card]
    return found


def typed(key: str, value: Any, kind: int) -> Value:
    """A value in the declared type of its key. Raises `MetadataUnfit`."""
    text = str(value).strip()
    try:
        match kind:
            case MetadataKey.TYPE_INTEGER:
                return Value(integer=int(text))
            case MetadataKey.TYPE_NUMBER:
                return Value(number=float(text))
            case MetadataKey.TYPE_BOOLEAN:
                return Value(boolean={"true": True, "false": False, "t": True, "f": False}[text.lower()])
            case MetadataKey.TYPE_TIME:
                written = Value()
                written.time.FromJsonString(text if text.endswith("Z") else text + "Z")
                return written
            case _:
                return Value(text=text)
    except (ValueError, KeyError):
        wanted = MetadataKey.Type.Name(kind).removeprefix("TYPE_").lower()  # type: ignore[arg-type]  # a number of the wire
        raise MetadataUnfit(f"{key} is declared as {wanted}, which {text!r} is not") from None
