"""The connection to the services: token, deadline and retry for every call."""

import asyncio
import importlib
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc

from khomas.client.errors import UNREACHABLE, KhomasError, UsageError, from_call, retry_pause
from khomas.client.token import find_token

DEFAULT_ENDPOINT = "127.0.0.1:7443"
_DEADLINE = 60.0
# How long a call that finds nobody is repeated: a service that has answered before is being restarted,
# one that never did has probably another address.
_PATIENCE, _PATIENCE_WITH_STRANGERS = 60.0, 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Between two messages of a stream that has an end; and of any stream as a whole.
_QUIET_SECONDS, _STREAM_SECONDS = 120.0, 24 * 3600.0
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
        self._met = False

    def stub(self, area: str) -> Any:
        """Return the stub of an area, or as "storage.link" of another service in it; imported with the first use."""
        if area not in self._stubs:
            package, _, service = area.partition(".")
            name = service or package
            module = importlib.import_module(f"khomas.api.{package}.v1.{name}_service_pb2_grpc")
            stub = f"{name.title().replace('_', '')}ServiceStub"
            self._stubs[area] = getattr(module, stub)(self._open())
        return self._stubs[area]

    async def call(self, area: str, method: str, request: Any, *, timeout: float = _DEADLINE) -> Any:
        """Make a call; again with the same request where that is safe and can help.

        Every request that changes something carries a request_id, so asking again has no second effect.
        """
        pause, began = _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                answer = await getattr(self.stub(area), method)(request, timeout=timeout, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                asked = retry_pause(error)
                self._met = self._met or asked is not None
                pause = min(pause * random.uniform(1, 2), _LONGEST_PAUSE)  # noqa: S311
                wait = pause if asked is None else asked
                if not _worth_it(error, asked) or time.monotonic() + wait - began > self._patience():
                    raise from_call(error, self.endpoint) from None
                await asyncio.sleep(wait)
            else:
                self._met = True
                return answer

    async def stream(
        self, area: str, method: str, request: Any, *, quiet_seconds: float | None = _QUIET_SECONDS
    ) -> AsyncIterator[Any]:
        """Make a streaming call; it is not repeated, for only the caller knows where to go on.

        Between two messages at most `quiet_seconds` may pass; None for what waits for things to happen.
        """
        made = getattr(self.stub(area), method)(request, metadata=self._metadata(), timeout=_STREAM_SECONDS)
        try:
            async with aclosing(_answers(made, quiet_seconds)) as answers:
                async for answer in answers:
                    self._met = True
                    yield answer
        except grpc.aio.AioRpcError as error:
            raise from_call(error, self.endpoint) from None
        except TimeoutError:
            message = f"{self.endpoint} was quiet for {quiet_seconds:g} s in the middle of an answer"
            raise KhomasError(message, "UNAVAILABLE", exit_code=UNREACHABLE) from None

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    def _patience(self) -> float:
        return _PATIENCE if self._met else _PATIENCE_WITH_STRANGERS

    def _metadata(self) -> list[tuple[str, str]]:
        token = self._token if self._token is not None else find_token()
        return [("authorization", f"Bearer {token}")] if token else []

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            if _is_loopback(self.endpoint):
                self._channel = grpc.aio.insecure_channel(self.endpoint, options=_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(self.endpoint, _credentials(), options=_OPTIONS)
        return self._channel


async def _answers(made: Any, quiet_seconds: float | None) -> AsyncGenerator[Any, None]:
    """The messages of a stream; the call ends with the iteration."""
    try:
        while True:
            async with asyncio.timeout(quiet_seconds):
                answer = await made.read()
            if answer is grpc.aio.EOF:
                return
            yield answer
    finally:
        made.cancel()


def _worth_it(error: grpc.aio.AioRpcError, asked: float | None) -> bool:
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return True
    return error.code() in _RETRIED and asked is not None


def _credentials() -> grpc.ChannelCredentials:
    """Whom we believe, and what we show to services that ask for a certificate."""
    files = [os.environ.get(name) for name in ("KHOMAS_CA", "KHOMAS_KEY", "KHOMAS_CERT")]
    ca, key, certificate = (Path(file).read_bytes() if file else None for file in files)
    if (key is None) != (certificate is None):
        raise UsageError("KHOMAS_CERT and KHOMAS_KEY are only good together.")
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
