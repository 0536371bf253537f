"""The channel over which a service calls another: token, trace, origin and a deadline on every call."""

import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import grpc

from khomas.kit.auth.tokens import TokenSource
from khomas.kit.boundary.call import ORIGIN_HEADER, current_call
from khomas.kit.boundary.status import name_upstream
from khomas.kit.telemetry.trace import HEADER, current_trace, new_trace

DEFAULT_DEADLINE = 30.0
_SERVICE_CONFIG = '{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": "readiness"}}'
_MESSAGE_BYTES = 64 * 1024 * 1024
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A black-holed connection is noticed in 20 s instead of by every deadline.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The default reaches two minutes; a service that was restarted shall be found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def open_channel(
    target: str,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    *,
    plaintext: bool = False,
) -> grpc.aio.Channel:
    """Open a channel with our keepalive, limits and balancing; the certificate is for servers that ask for one."""
    if plaintext:
        return grpc.aio.insecure_channel(target, options=OPTIONS)
    authorities, own_key, own = (file.read_bytes() if file else None for file in (ca, key, certificate))
    credentials = grpc.ssl_channel_credentials(authorities, own_key, own)
    return grpc.aio.secure_channel(target, credentials, options=OPTIONS)


class ServiceChannel(grpc.aio.Channel):
    """Adds to every call what the other service has to know, unless the caller gave it.

    A wrapper and not interceptors: those cost a task a call.
    """

    def __init__(self, inner: grpc.aio.Channel, service: str, tokens: TokenSource) -> None:
        self._inner = inner
        self._service = service
        self._tokens = tokens

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Return a callable for one method; calls end by a deadline."""
        return self._bounded(self._inner.unary_unary(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """Return a callable for one method; the stream lasts as long as the caller sends."""
        return self._open_ended(self._inner.stream_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """Return a callable for one method; the stream lasts as long as the server sends."""
        return self._open_ended(self._inner.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """Return a callable for one method; the stream lasts as long as both sides like."""
        return self._open_ended(self._inner.stream_stream(*args, **kwargs))

    def _bounded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def invoke(
            request: Any, *, timeout: float | None = None, metadata: Iterable[Any] = (), **options: Any
        ) -> "_NamedCall":
            limit = timeout if timeout is not None else _remaining()
            return _NamedCall(call(request, timeout=limit, metadata=self._metadata(metadata), **options), self._service)

        return invoke

    def _open_ended(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def invoke(request: Any = None, *, metadata: Iterable[Any] = (), **options: Any) -> Any:
            return call(request, metadata=self._metadata(metadata), **options)

        return invoke

    def _metadata(self, given: Iterable[Any]) -> list[tuple[str, str]]:
        metadata = list(given or ())
        keys = {key for key, _ in metadata}
        if "authorization" not in keys:
            metadata.append(("authorization", f"Bearer {self._tokens.token()}"))
        if HEADER not in keys:
            metadata.append((HEADER, (current_trace() or new_trace()).traceparent))
        call = current_call()
        if call is not None and call.origin and ORIGIN_HEADER not in keys:
            metadata.append((ORIGIN_HEADER, call.origin))
        return metadata

    async def __aenter__(self) -> "ServiceChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the connection."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of the connection."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connection is in another state."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait for the connection."""
        await self._inner.channel_ready()


class _NamedCall:
    """A unary call whose errors say which service they come from."""

    def __init__(self, call: Any, service: str) -> None:
        self._call = call
        self._service = service

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            name_upstream(error, self._service)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _remaining() -> float:
    """Return the default deadline, or what is left of our own caller's if that is less."""
    call = current_call()
    if call is None or call.deadline is None:
        return DEFAULT_DEADLINE
    return min(DEFAULT_DEADLINE, max(0.0, call.deadline - time.monotonic()))
