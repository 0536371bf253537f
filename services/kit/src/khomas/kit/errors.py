"""The errors that a service raises and the boundary turns into a google.rpc.Status."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import ClassVar

import grpc

# gRPC refuses trailing metadata above 8 KiB, so what goes into it is cut.
_MAX_TEXT = 512
# Of names to choose from; the longest of our enumerations takes 826.
_MAX_NAMES = 1024


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks its rule."""

    field: str
    description: str


class DomainError(Exception):
    """Refuse a call with a code, a registered reason and metadata.

    A subclass sets `code`, `reason` (a value of its area's `ErrorReason` without the prefix), `area`
    ("" for the common ones) and `template`, the message with the metadata's keys in braces. It is raised
    as `raise FileMissing(name=lfn)`. The message says what to do next; clients switch on the reason.
    """

    code: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]
    area: ClassVar[str] = ""
    template: ClassVar[str]

    def __init__(
        self,
        message: str | None = None,
        /,
        *,
        retry_after: timedelta | None = None,
        violations: Sequence[FieldViolation] = (),
        **metadata: object,
    ) -> None:
        self.metadata = {key: told(value) for key, value in metadata.items()}
        self.message = message or self.template.format_map(self.metadata)
        self.retry_after = retry_after
        self.violations = tuple(violations)
        super().__init__(self.message)

    @property
    def domain(self) -> str:
        """Return the domain of the ErrorInfo: "khomas.catalog", or "khomas" for the common reasons."""
        return f"khomas.{self.area}" if self.area else "khomas"


def told(value: object) -> str:
    """Return a value as messages and metadata hold it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return told(value.value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | frozenset):
        return str(value)[:_MAX_TEXT]
    listed = ", ".join(map(told, value))
    # Half a name is none.
    return listed if len(listed) <= _MAX_NAMES else listed[: _MAX_NAMES + 2].rpartition(", ")[0] or listed[:_MAX_NAMES]


class TokenMissing(DomainError):
    """The call carries no bearer token."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_MISSING"
    template = "The call carries no token; set BEARER_TOKEN or BEARER_TOKEN_FILE."


class TokenExpired(DomainError):
    """The token is past its `exp`."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_EXPIRED"
    template = "The token expired at {expired_at}; get a new one."


class TokenRefused(DomainError):
    """The token breaks a rule; `rule` names the one."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_REFUSED"
    template = "The token was refused by the rule '{rule}'; `khomas auth explain` says more."


class CapabilityMissing(DomainError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "CAPABILITY_MISSING"
    template = "This needs the capability {capability} for {path}; ask for a token that has it."


class OwnerRefused(DomainError):
    """The caller would make something that belongs to somebody else."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "OWNER_REFUSED"
    template = "Only a service may make something for {owner}; leave the owner out."


class FieldInvalid(DomainError):
    """A field of the request breaks its rule: `FieldInvalid.of("files[0].name", "must be absolute")`."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "FIELD_INVALID"
    template = "The field {field} is invalid."

    @classmethod
    def of(cls, field: str, description: str) -> "FieldInvalid":
        """Refuse one field."""
        return cls.all_of([FieldViolation(field, description)])

    @classmethod
    def all_of(cls, violations: Sequence[FieldViolation]) -> "FieldInvalid":
        """Refuse several fields at once; the message tells the first one."""
        first = violations[0]
        more = f" ({len(violations) - 1} more)" if len(violations) > 1 else ""
        message = f"{first.field}: {first.description[:_MAX_TEXT]}{more}"
        return cls(message, violations=violations, field=first.field)


class FilterInvalid(DomainError):
    """The filter does not parse, or names an unknown field or value."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "FILTER_INVALID"
    template = "The filter is wrong at position {position}; did you mean: {nearest}?"


class OrderInvalid(DomainError):
    """The order_by does not parse or names an unknown field."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "ORDER_INVALID"
    template = "Cannot order by {field}; did you mean: {nearest}?"


class PageTokenInvalid(DomainError):
    """The page token is not from this list with these arguments."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "PAGE_TOKEN_INVALID"
    template = "The page token does not belong to this list; start again without one."


class RequestIdReused(DomainError):
    """The request_id was used for a different request."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"
    template = "The request_id {request_id} was used for a different request; take a fresh one."


class CursorExpired(DomainError):
    """The cursor is older than the events that are kept."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "CURSOR_EXPIRED"
    template = 'Events before {oldest_cursor} are no longer kept; list again, then watch from "now".'


class Overloaded(DomainError):
    """The server handles as many calls as it can."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"
    template = "The server is busy; try again."


class UpstreamUnavailable(DomainError):
    """A service that this one needs did not answer."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UPSTREAM_UNAVAILABLE"
    template = "The service {service} does not answer; try again."


class InternalError(DomainError):
    """An error of ours; the log has it under the trace id."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
    template = "Internal error; tell the operator the trace id {trace_id}."


class EtagMismatch(DomainError):
    """The etag is not that of the stored resource."""

    code = grpc.StatusCode.ABORTED
    reason = "ETAG_MISMATCH"
    template = "{name} was changed meanwhile; read it again, then repeat."


class NotFound(DomainError):
    """There is no resource of this name."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"
    template = "There is no {name}."


class NotInstalled(DomainError):
    """The installation lacks the plug-in or service for this."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_INSTALLED"
    template = "This installation lacks {needed}."


class DiskFull(DomainError):
    """No space is left where the service keeps its state; nothing was changed."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "DISK_FULL"
    template = "The service has no space left for its state; nothing was changed. Tell the operator."
