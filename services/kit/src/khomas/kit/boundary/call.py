"""The call that the current task handles."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from khomas.kit.auth.principal import Kind, Principal
from khomas.kit.errors import OwnerRefused

Context = grpc.aio.ServicerContext[Any, Any]
ORIGIN_HEADER = "khomas-origin"


@dataclass(frozen=True, slots=True)
class Call:
    """What handlers may know about their call beyond the request."""

    # "/khomas.api.catalog.v1.CatalogService/GetFile"
    method: str
    # None only for public methods.
    principal: Principal | None
    # Uid of what the caller makes this for, or "".
    origin: str
    # End of the caller's patience on the monotonic clock, None if it has no end.
    deadline: float | None


_current: ContextVar[Call | None] = ContextVar("khomas_call", default=None)


def enter_call(call: Call) -> None:
    """Make this the call of the current task and of the tasks that it starts."""
    _current.set(call)


def current_call() -> Call | None:
    """Return the call that the current task handles, None in background loops."""
    return _current.get()


def current_principal() -> Principal:
    """Return the caller. A LookupError means: there is no call, or its method is public."""
    call = _current.get()
    if call is None or call.principal is None:
        raise LookupError("nobody is authenticated here")
    return call.principal


def current_owner(named: str = "") -> str:
    """Return whom the things belong to that the call makes: the caller, or the one that a service names."""
    principal = current_principal()
    if named not in ("", principal.subject) and principal.kind is not Kind.SERVICE:
        raise OwnerRefused(owner=named)
    return named or principal.subject
