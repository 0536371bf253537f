"""What can go wrong, as one exception with the code to leave a program with."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"

# Exit codes of the command line.
FAILED, USAGE, CANCELLED, NOT_FOUND, REFUSED, UNREACHABLE, TIMED_OUT = 1, 2, 3, 4, 5, 6, 124
_EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: USAGE,
    grpc.StatusCode.OUT_OF_RANGE: USAGE,
    grpc.StatusCode.NOT_FOUND: NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNREACHABLE,
}


class KhomasError(Exception):
    """A refused or failed call; `reason` is one of the documented ErrorReason names, or the gRPC code's."""

    def __init__(
        self, message: str, reason: str = "", *, exit_code: int = REFUSED, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.exit_code = exit_code
        self.metadata = dict(metadata or {})


class UsageError(KhomasError):
    """The caller's own input is wrong; nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "USAGE", exit_code=USAGE)


def is_passing(error: KhomasError) -> bool:
    """Tell whether a stream that broke off with it can go on after a while."""
    return error.reason in ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", "DEADLINE_EXCEEDED")


def from_status(status: status_pb2.Status) -> KhomasError:
    """Return the entry of a batch's answer as an exception."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            break
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    exit_code = _EXIT_CODES.get(code, REFUSED)
    return KhomasError(status.message, info.reason or code.name, exit_code=exit_code, metadata=dict(info.metadata))


def from_call(error: grpc.aio.AioRpcError, endpoint: str) -> KhomasError:
    """Return a failed call as an exception."""
    if (status := _details(error)) is not None:
        return from_status(status)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        message = f"No answer from {endpoint}: {error.details()}. Is KHOMAS_ENDPOINT right, and `khomas up` running?"
        return KhomasError(message, "UNAVAILABLE", exit_code=UNREACHABLE)
    return KhomasError(error.details() or "", error.code().name, exit_code=_EXIT_CODES.get(error.code(), REFUSED))


def retry_pause(error: grpc.aio.AioRpcError) -> float | None:
    """Return how long the server asks to wait before the same request again, None if it does not say."""
    retry = error_details_pb2.RetryInfo()
    for detail in (_details(error) or status_pb2.Status()).details:
        if detail.Unpack(retry):
            return retry.retry_delay.ToTimedelta().total_seconds()
    return None


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
