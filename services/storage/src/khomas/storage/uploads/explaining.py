"""What an upload waits for, or why it is gone, what would change it and who can."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import grant_pb2 as pb

Remedy = explanation_pb2.Remedy
_SEND = Remedy(who="you", action="Send the files to the grant's url and commit the upload, in time.")
_AGAIN = Remedy(who="you", action="Bring the files in again.", command="khomas put FILE NAME --skip-same")
_REMEDIES: Mapping[int, Sequence[Remedy]] = {
    pb.UPLOAD_REASON_NO_BYTES: (_SEND,),
    pb.UPLOAD_REASON_NOT_COMMITTED: (_SEND,),
    pb.UPLOAD_REASON_COMMITTING: (
        Remedy(who="nobody: it resolves itself", action="Wait: a commit that has begun is gone on with by itself."),
    ),
    pb.UPLOAD_REASON_ABANDONED: (_AGAIN,),
}


def explanation(upload: pb.Upload, row: Row[Any], now: datetime) -> explanation_pb2.Explanation:
    """Explain an upload with what has arrived."""
    reason = _reason(upload, row)
    answer = explanation_pb2.Explanation(
        subject=upload.name,
        state=pb.Upload.State.Name(upload.state).removeprefix("STATE_"),
        reason=pb.UploadReason.Name(reason).removeprefix("UPLOAD_REASON_") if reason else "",
        summary=_summary(upload, row, reason, now),
        remedies=_REMEDIES.get(reason, ()),
    )
    if upload.state == pb.Upload.STATE_OPEN:
        answer.since.CopyFrom(upload.create_time)
        answer.next_check_time.FromDatetime(row.expire_time)
    return answer


def _reason(upload: pb.Upload, row: Row[Any]) -> pb.UploadReason.ValueType:
    match upload.state:
        case pb.Upload.STATE_OPEN if row.commit_uid is not None:
            return pb.UPLOAD_REASON_COMMITTING
        case pb.Upload.STATE_OPEN:
            return pb.UPLOAD_REASON_NOT_COMMITTED if upload.files else pb.UPLOAD_REASON_NO_BYTES
        case pb.Upload.STATE_ABANDONED:
            return pb.UPLOAD_REASON_ABANDONED
    return pb.UPLOAD_REASON_UNSPECIFIED


def _summary(upload: pb.Upload, row: Row[Any], reason: pb.UploadReason.ValueType, now: datetime) -> str:
    size = sum(one.size_bytes for one in upload.files)
    arrived = f"{len(upload.files)} of at most {upload.max_files} files have arrived at {row.storage_element}"
    end = row.expire_time.isoformat(timespec="seconds").replace("+00:00", "Z")
    match reason:
        case pb.UPLOAD_REASON_COMMITTING:
            return f"{arrived} ({size} bytes), and are being committed."
        case pb.UPLOAD_REASON_ABANDONED:
            late = f", or not committed before {end}" if row.expire_time <= now else ""
            return f"It was given up{late}; its bytes are deleted."
        case pb.UPLOAD_REASON_UNSPECIFIED:
            return "All its committed files are in the catalogue."
    return f"{arrived} ({size} bytes); it is given up when it is not committed before {end}."
