"""Checks that every service's tests make of all its rpcs at once."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from khomas.kit.auth.policy import declared_access, policies_of
from khomas.kit.boundary.status import reason_of
from khomas.kit.testing import Served

_PATIENCE = 10.0


def assert_methods_declare_access(service: ServiceDescriptor) -> None:
    """Fail if an rpc of a service declares no policy, or one that makes no sense."""
    policies_of(service)
    bare = [method.full_name for method in service.methods if declared_access(method).WhichOneof("rule") is None]
    assert not bare, f"these rpcs declare no access: {bare}"


async def assert_refuses_bad_tokens(served: Served, service: ServiceDescriptor) -> None:
    """Fail unless every rpc of a running service that is not public refuses four kinds of bad token."""
    guarded = [method for method in service.methods if not declared_access(method).public]
    assert guarded, f"{service.full_name} has no rpc to check"
    wrong = [
        f"{method.full_name}: {name} answered {reason or 'OK'}, not {expected}"
        for name, expected, channel in _bad_callers(served)
        for method in guarded
        if (reason := await _answer(channel, method)) != expected
    ]
    assert not wrong, wrong


def _bad_callers(served: Served) -> Iterator[tuple[str, str, grpc.aio.Channel]]:
    yield "a missing token", "TOKEN_MISSING", served.bare_channel
    expired = served.token(expires_in=timedelta(seconds=-1))
    yield "an expired token", "TOKEN_EXPIRED", served.channel_with(expired)
    foreign = served.token(audience="https://elsewhere.example")
    yield "a token for another audience", "TOKEN_REFUSED", served.channel_with(foreign)
    yield "a token without the capability", "CAPABILITY_MISSING", served.channel_for()


async def _answer(channel: grpc.aio.Channel, method: MethodDescriptor) -> str:
    """Call a method with an empty request and return the reason of its refusal, "" if it answered."""
    owner = method.containing_service
    assert owner is not None
    path = f"/{owner.full_name}/{method.name}"
    request = _no_requests() if method.client_streaming else b""
    open_method: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    call = open_method(path)(request, timeout=_PATIENCE)
    try:
        if method.server_streaming:
            async for _ in call:
                break
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error) or error.code().name
    return ""


async def _no_requests() -> AsyncIterator[bytes]:
    for request in list[bytes]():
        yield request
