"""The one chain around every handler: telemetry, limits, token, policy, validation, errors."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from khomas.kit.auth.policy import Policy
from khomas.kit.auth.principal import Principal
from khomas.kit.auth.verifier import Verifier
from khomas.kit.boundary import validation
from khomas.kit.boundary.call import ORIGIN_HEADER, Call, Context, enter_call
from khomas.kit.boundary.moments import check_spans, moments_of
from khomas.kit.boundary.status import DETAILS_KEY, translated
from khomas.kit.boundary.streams import Watches, until_expiry
from khomas.kit.errors import Overloaded, TokenMissing
from khomas.kit.telemetry.recorder import Recorder
from khomas.kit.telemetry.trace import enter_trace

log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    policy: Policy

    def check(self, call: Call, request: Message) -> None:
        """Refuse what the caller may not ask for, then what is malformed: in this order it leaks nothing."""
        if call.principal is not None:
            self.policy.check_request(call.principal, request)
        validation.check(request)
        check_spans(request)


class _Limit:
    """Counts what is in flight."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._count = 0

    def __enter__(self) -> None:
        if self._count >= self._maximum:
            raise Overloaded(retry_after=timedelta(seconds=1))
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1


class Boundary:
    """Wraps the handlers of services."""

    def __init__(self, verifier: Verifier, recorder: Recorder, max_calls: int, max_streams: int) -> None:
        self._verifier = verifier
        self._recorder = recorder
        self._calls = _Limit(max_calls)
        self._streams = _Limit(max_streams)
        self._watches = Watches()

    def end_idle_streams(self, idle: timedelta) -> None:
        """Send away the callers of streams that have sent nothing for so long: they only watch."""
        self._watches.end_idle(idle)

    def around(
        self, method: str, policy: Policy, handler: "grpc.RpcMethodHandler[Any, Any]"
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return a handler that passes every call of a method through the chain."""
        described = _Method(method, policy)
        make, wrap = {
            (False, False): (grpc.unary_unary_rpc_method_handler, self._unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, self._unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, self._stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, self._stream_stream),
        }[bool(handler.request_streaming), bool(handler.response_streaming)]
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        return make(wrap(described, inner), handler.request_deserializer, handler.response_serializer)

    def _unary_unary(self, method: _Method, inner: Any) -> Any:
        async def handle(request: Message, context: Context) -> Any:
            async def body(call: Call) -> Any:
                method.check(call, request)
                with moments_of([request]):
                    return await inner(request, context)

            return await self._pass(method, context, self._calls, body)

        return handle

    def _unary_stream(self, method: _Method, inner: Any) -> Any:
        async def handle(request: Message, context: Context) -> None:
            async def body(call: Call) -> None:
                method.check(call, request)
                async with self._watches.stream(call) as stream:
                    with moments_of([request]):
                        await stream.send(inner(request, context), context)

            await self._pass(method, context, self._streams, body)

        return handle

    def _stream_unary(self, method: _Method, inner: Any) -> Any:
        async def handle(requests: AsyncIterator[Message], context: Context) -> Any:
            async def body(call: Call) -> Any:
                given: list[Message] = []
                async with until_expiry(call):
                    with moments_of(given):
                        return await inner(_checked(method, call, requests, given), context)

            return await self._pass(method, context, self._streams, body)

        return handle

    def _stream_stream(self, method: _Method, inner: Any) -> Any:
        async def handle(requests: AsyncIterator[Message], context: Context) -> None:
            async def body(call: Call) -> None:
                given: list[Message] = []
                async with self._watches.stream(call) as stream:
                    with moments_of(given):
                        await stream.send(inner(_checked(method, call, requests, given), context), context)

            await self._pass(method, context, self._streams, body)

        return handle

    async def _pass(
        self, method: _Method, context: Context, limit: _Limit, body: Callable[[Call], Awaitable[Any]]
    ) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        span = self._recorder.server_call(method.name, metadata)
        # grpc.aio runs every call in a task of its own, so nothing has to be set back.
        enter_trace(span.trace)
        code = grpc.StatusCode.OK
        try:
            with limit:
                call = await self._admit(method, context, metadata)
                enter_call(call)
                return await body(call)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _CODES.get(context.code(), grpc.StatusCode.UNKNOWN)  # type: ignore[call-overload]
            raise
        except Exception as error:
            status, ours = translated(error, span.trace.trace_id)
            code = _CODES[status.code]
            if ours:
                log.exception("call.failed", extra={"method": method.name})
            await _abort(context, code, status)
        finally:
            span.end(code)

    async def _admit(self, method: _Method, context: Context, metadata: Mapping[str, str | bytes]) -> Call:
        principal = None if method.policy.public else await self._caller(method.policy, metadata)
        origin = metadata.get(ORIGIN_HEADER, "")
        remaining: Any = context.time_remaining()  # None without a deadline, whatever its type says
        return Call(
            method=method.name,
            principal=principal,
            origin=origin if isinstance(origin, str) else "",
            deadline=time.monotonic() + remaining if remaining is not None else None,
        )

    async def _caller(self, policy: Policy, metadata: Mapping[str, str | bytes]) -> Principal:
        header = metadata.get("authorization")
        if not isinstance(header, str) or header[:7].lower() != _BEARER:
            raise TokenMissing
        principal = await self._verifier.verify(header[7:])
        policy.check_caller(principal)
        return principal


async def _abort(context: Context, code: grpc.StatusCode, status: status_pb2.Status) -> NoReturn:
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


async def _checked(
    method: _Method, call: Call, requests: AsyncIterator[Message], given: list[Message]
) -> AsyncIterator[Message]:
    """Pass on what is fit to be handled; the last of it is in `given`."""
    async for request in requests:
        method.check(call, request)
        given[:] = [request]
        yield request
