"""The connection to the services: token, deadline and retry for every call."""

import asyncio
import importlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from khomas.client.errors import from_call, retry_pause
from khomas.client.token import find_token

DEFAULT_ENDPOINT = "127.0.0.1:7443"
_DEADLINE = 60.0
_ATTEMPTS = 6
_FIRST_PAUSE = 0.1
_RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED})
_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS: list[tuple[str, Any]] = [
    (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": "readiness"}}',
    ),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class Connection:
    """One channel to an endpoint and the stubs on it."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = endpoint or os.environ.get("KHOMAS_ENDPOINT", DEFAULT_ENDPOINT)
        self._token = token
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}

    def stub(self, area: str) -> Any:
        """Return the stub of an area; its generated code is imported with the first use."""
        if area not in self._stubs:
            module = importlib.import_module(f"khomas.api.{area}.v1.{area}_service_pb2_grpc")
            self._stubs[area] = getattr(module, f"{area.capitalize()}ServiceStub")(self._open())
        return self._stubs[area]

    async def call(self, area: str, method: str, request: Any, *, timeout: float = _DEADLINE) -> Any:
        """Make a call; again with the same request where that is safe and can help.

        Every request that changes something carries a request_id, so asking again has no second effect.
        """
        pause = _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await getattr(self.stub(area), method)(request, timeout=timeout, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                asked = retry_pause(error)
                if attempt == _ATTEMPTS or not _worth_it(error, asked):
                    raise from_call(error, self.endpoint) from None
                await asyncio.sleep(asked if asked is not None else pause * random.uniform(0.5, 1))  # noqa: S311
                pause *= 2
        raise AssertionError("the last attempt returns or raises")

    async def stream(self, area: str, method: str, request: Any) -> AsyncIterator[Any]:
        """Make a streaming call; it is not repeated, for only the caller knows where to go on."""
        try:
            async for answer in getattr(self.stub(area), method)(request, metadata=self._metadata()):
                yield answer
        except grpc.aio.AioRpcError as error:
            raise from_call(error, self.endpoint) from None

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    def _metadata(self) -> list[tuple[str, str]]:
        token = self._token if self._token is not None else find_token()
        return [("authorization", f"Bearer {token}")] if token else []

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            if _is_loopback(self.endpoint):
                self._channel = grpc.aio.insecure_channel(self.endpoint, options=_OPTIONS)
            else:
                ca = os.environ.get("KHOMAS_CA")
                credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes() if ca else None)
                self._channel = grpc.aio.secure_channel(self.endpoint, credentials, options=_OPTIONS)
        return self._channel


def _worth_it(error: grpc.aio.AioRpcError, asked: float | None) -> bool:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return True
    return error.code() in _RETRIED and asked is not None


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
