"""Rows of the archive's tables and the messages that they become."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct
from sqlalchemy import Row

from khomas.api.archive.v1 import obscore_pb2
from khomas.api.archive.v1 import release_pb2 as pb
from khomas.archive.obscore import COLUMNS, unit_vector
from khomas.archive.offers import Checked
from khomas.kit.database import AnyRow


def release_message(row: AnyRow) -> pb.Release:
    """Return a release without products and exports."""
    message = pb.Release(
        name=row.name,
        title=row.title,
        description=row.description,
        dataset=row.dataset,
        mapping=pb.Mapping.FromString(row.mapping),
        authority=row.authority,
        terms=row.terms,
        uid=row.uid,
        state=row.state,
        problems=row.problems,
        record_count=row.record_count,
        content_digest=row.content_digest,
        create_time=row.create_time,
        owner=row.owner,
        etag=str(row.version),
        reason=_reason(row),
    )
    if row.publish_time is not None:
        message.publish_time.FromDatetime(row.publish_time)
    return message


def _reason(row: AnyRow) -> pb.Release.Reason.ValueType:
    """Say why a release is not offered."""
    reason, state = pb.Release.Reason, pb.Release.State
    if row.state == state.STATE_PREPARING:
        return reason.REASON_WAIT_RETRY if row.message else reason.REASON_WAIT_PREPARATION
    reasons = {
        state.STATE_READY: reason.REASON_WAIT_PUBLICATION,
        state.STATE_FAILED: reason.REASON_CONTENT_INVALID,
        state.STATE_WITHDRAWN: reason.REASON_TAKEN_BACK,
    }
    return reasons.get(row.state, reason.REASON_UNSPECIFIED)


def product_row(release_uid: str, one: Checked, size_bytes: int, adler32: str) -> dict[str, Any]:
    """Return the row of a product."""
    return {
        "release_uid": release_uid,
        "source": one.offer.source.name,
        "file": one.offer.file,
        "publisher_did": one.offer.publisher_did,
        "size_bytes": size_bytes,
        "adler32": adler32,
        "content_digest": one.content_digest,
        "has_record": one.record is not None,
    }


def product_message(row: Mapping[str, Any] | Row[Any]) -> pb.Product:
    """Return a product."""
    values = row if isinstance(row, Mapping) else row._mapping  # noqa: SLF001  SQLAlchemy's public name
    fields = (field.name for field in pb.Product.DESCRIPTOR.fields)
    return pb.Product(**{field: values[field] for field in fields})


def record_row(release_uid: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a record."""
    x, y, z = unit_vector(record) or (None, None, None)
    values = {column.name: record.get(column.name) for column in COLUMNS}
    return {"release_uid": release_uid, **values, "cx": x, "cy": y, "cz": z}


def record_message(row: AnyRow) -> obscore_pb2.ObsCoreRecord:
    """Return a record; what is NULL is not set."""
    values = row._mapping  # noqa: SLF001  SQLAlchemy's public name
    return obscore_pb2.ObsCoreRecord(
        **{column.name: values[column.name] for column in COLUMNS if values[column.name] is not None}
    )


def export_message(row: AnyRow) -> pb.Export:
    """Return an export."""
    return pb.Export(
        exporter=row.exporter,
        files=row.files,
        create_time=row.create_time,
        options=Struct.FromString(row.options),
    )


def details(message: pb.Release, products: Sequence[AnyRow], exports: Sequence[AnyRow]) -> pb.Release:
    """Add products and exports to a release."""
    message.products.extend(product_message(row) for row in products)
    message.exports.extend(export_message(row) for row in exports)
    return message
