"""A service with a method of each shape and each policy, for the kit's own tests and measurements.

Its contract is built here at import, because it is no part of the public protos.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from khomas.api.common.v1 import access_pb2, event_pb2
from khomas.kit.boundary.call import Context, current_principal
from khomas.kit.config import ServiceSettings
from khomas.kit.service import Host, Running, Service

PACKAGE = "khomas.kit.testing.v1"
SERVICE = f"{PACKAGE}.EchoService"
Request = event_pb2.WatchEventsRequest
Reply = event_pb2.WatchEventsResponse

Answer = Callable[[Request], Awaitable[Reply]]
_MAKE: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
_ONE = access_pb2.Access(capability="compute.read")
# Name, request stream, reply stream, access.
_METHODS = (
    ("Echo", False, False, _ONE),
    ("Repeat", False, True, _ONE),
    ("Join", True, False, _ONE),
    ("Chat", True, True, _ONE),
    ("Read", False, False, access_pb2.Access(capability="storage.read", path_fields=["filter"])),
    ("Open", False, False, access_pb2.Access(public=True)),
    ("Closed", False, False, None),
)


def _descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="khomas/kit/testing/v1/echo_service.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=["khomas/api/common/v1/event.proto", "khomas/api/common/v1/access.proto"],
    )
    service = file.service.add(name="EchoService")
    for name, request_stream, reply_stream, access in _METHODS:
        method = service.method.add(
            name=name,
            input_type=f".{Request.DESCRIPTOR.full_name}",
            output_type=f".{Reply.DESCRIPTOR.full_name}",
            client_streaming=request_stream,
            server_streaming=reply_stream,
        )
        if access is not None:
            method.options.Extensions[access_pb2.access].CopyFrom(access)
    return file


descriptor_pool.Default().AddSerializedFile(_descriptor().SerializeToString())
DESCRIPTOR: ServiceDescriptor = descriptor_pool.Default().FindServiceByName(SERVICE)


class EchoSettings(ServiceSettings, env_prefix="KHOMAS_ECHO_"):
    """The service has no settings of its own."""


async def _same(request: Request) -> Reply:
    return Reply(cursor=request.cursor)


class _Servicer:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def echo(self, request: Request, _: Context) -> Reply:
        return await self._answer(request)

    async def repeat(self, request: Request, _: Context) -> AsyncIterator[Reply]:
        yield await self._answer(request)
        if not request.until_now:
            await asyncio.sleep(3600)
        yield Reply(cursor=current_principal().subject)

    async def join(self, requests: AsyncIterator[Request], _: Context) -> Reply:
        return Reply(cursor="".join([request.cursor async for request in requests]))

    async def chat(self, requests: AsyncIterator[Request], _: Context) -> AsyncIterator[Reply]:
        async for request in requests:
            yield await self._answer(request)


def add_echo(server: grpc.aio.Server, answer: Answer = _same) -> None:
    """Do what a generated add_EchoServiceServicer_to_server would."""
    servicer = _Servicer(answer)
    one, many = servicer.echo, servicer.repeat
    behaviours = {"Repeat": many, "Join": servicer.join, "Chat": servicer.chat}
    handlers = {
        name: _MAKE[request_stream, reply_stream](
            behaviours.get(name, one), Request.FromString, Reply.SerializeToString
        )
        for name, request_stream, reply_stream, _ in _METHODS
    }
    server.add_registered_method_handlers(SERVICE, handlers)


def echo_service(answer: Answer = _same, name: str = "echo") -> Service[EchoSettings]:
    """Return the service; `answer` is asked for each reply and may raise."""

    async def start(_: EchoSettings, __: Host) -> Running:
        return Running(add_to=lambda server: add_echo(server, answer))

    return Service(name, EchoSettings, start)


def method(channel: grpc.aio.Channel, name: str) -> Any:
    """Return the callable of a method, as a generated stub would hold it."""
    shape = next((request, reply) for called, request, reply, _ in _METHODS if called == name)
    open_method = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[shape]
    return open_method(
        f"/{SERVICE}/{name}",
        request_serializer=Request.SerializeToString,
        response_deserializer=Reply.FromString,
    )
