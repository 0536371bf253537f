"""Between exceptions and google.rpc.Status, in both directions."""

import errno
import importlib
from collections.abc import Iterator
from datetime import timedelta

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from khomas.kit.errors import DiskFull, DomainError, InternalError, NotInstalled, UpstreamUnavailable

DETAILS_KEY = "grpc-status-details-bin"
# Trailing metadata beyond 8 KiB is refused by gRPC, so a reply lists only so many violations.
_MAX_VIOLATIONS = 20
_MAX_DESCRIPTION = 200
_UPSTREAM = "khomas-upstream:"
_OURS_TO_FIX = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_NOT_ANSWERED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_BROKEN = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.CANCELLED}
)


def status_of(error: DomainError) -> status_pb2.Status:
    """Return an error as it stands in a reply, or in the entry of a batch's reply."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=error.domain, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations[:_MAX_VIOLATIONS]:
            description = violation.description[:_MAX_DESCRIPTION]
            bad_request.field_violations.add(field=violation.field, description=description)
        status.details.add().Pack(bad_request)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        status.details.add().Pack(retry)
    return status


def received_status(error: grpc.RpcError) -> status_pb2.Status | None:
    """Return the google.rpc.Status that a failed call brought, None if it brought none."""
    metadata = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else None
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def info_of(status: status_pb2.Status | None) -> error_details_pb2.ErrorInfo:
    """Return the ErrorInfo of a status, an empty one if it has none."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            break
    return info


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason of a failed call, "" if it gives none."""
    return info_of(received_status(error)).reason


def name_upstream(error: BaseException, service: str) -> None:
    """Note on an error of a call which service it went to."""
    error.add_note(f"{_UPSTREAM}{service}")


def translated(error: Exception, trace_id: str) -> tuple[status_pb2.Status, bool]:
    """Return what a caller learns of an exception, and whether it is ours to look into."""
    if isinstance(error, DomainError):
        return status_of(error), False
    if isinstance(error, grpc.aio.AioRpcError):
        return _from_upstream(error, trace_id)
    if _disk_is_full(error):
        return status_of(DiskFull()), True
    return status_of(InternalError(trace_id=trace_id)), True


def _from_upstream(error: grpc.aio.AioRpcError, trace_id: str) -> tuple[status_pb2.Status, bool]:
    code = error.code()
    if code in _NOT_ANSWERED:
        return status_of(UpstreamUnavailable(service=_upstream(error), retry_after=timedelta(seconds=1))), False
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return status_of(NotInstalled(needed=_upstream(error))), False
    if code in _OURS_TO_FIX or code in _BROKEN:
        return status_of(InternalError(trace_id=trace_id)), True
    # What the other service refuses in the request's own terms is told to our caller as it is.
    return received_status(error) or status_pb2.Status(code=code.value[0], message=error.details() or ""), False


def _upstream(error: BaseException) -> str:
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(_UPSTREAM) for note in notes if note.startswith(_UPSTREAM)), "(unnamed)")


def _disk_is_full(error: BaseException) -> bool:
    return any(
        (isinstance(cause, OSError) and cause.errno == errno.ENOSPC) or "database or disk is full" in str(cause)
        for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def unregistered_reasons(area: str) -> list[str]:
    """Return the error classes of an area (all that are imported) whose reason its ErrorReason lacks.

    The area "" stands for the common errors.
    """
    module = importlib.import_module(f"khomas.api.{area or 'common'}.v1.error_reason_pb2")
    registered = {name.removeprefix("ERROR_REASON_") for name in module.ErrorReason.keys()}  # noqa: SIM118
    classes = {cls for cls in _subclasses(DomainError) if cls.area == area and hasattr(cls, "reason")}
    return sorted(
        f"{cls.__module__}.{cls.__qualname__}: {cls.reason}" for cls in classes if cls.reason not in registered
    )


def _subclasses(cls: type[DomainError]) -> Iterator[type[DomainError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
