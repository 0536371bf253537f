"""The gRPC server: every handler behind the boundary, health, reflection, graceful drain."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from khomas.kit.auth.policy import policies_of
from khomas.kit.boundary.boundary import Boundary
from khomas.kit.config import ConfigError, ServerSettings, TlsSettings
from khomas.kit.health import Health

_LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


class Server(grpc.aio.Server):
    """A grpc.aio server whose services pass the boundary; generated add_…_to_server functions take it."""

    def __init__(self, settings: ServerSettings, boundary: Boundary) -> None:
        self._settings = settings
        self._boundary = boundary
        self._health = Health()
        # Where probes ask, once bound; 0 without a port of their own.
        self.health_port = 0
        self._inner = grpc.aio.server(options=_options(settings))
        self._probes = grpc.aio.server() if settings.health_listen else None
        self._offered: set[str] = set()
        self._guarded: set[str] = set()

    def bind(self) -> int:
        """Listen where the settings say and return the port."""
        listen = self._settings.listen
        if self._probes is not None:
            self.health_port = self._probes.add_insecure_port(self._settings.health_listen)
        if self._settings.tls is not None:
            return self.add_secure_port(listen, _credentials(self._settings.tls))
        host = listen.rpartition(":")[0]
        if host not in _LOOPBACK and not listen.startswith("unix:"):
            raise ConfigError(f"Without TLS the server listens on loopback only, not at {listen}; set server.tls.")
        return self.add_insecure_port(listen)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Add a service, each method behind the boundary with its own policy."""
        service = descriptor_pool.Default().FindServiceByName(service_name)
        policies = policies_of(service)
        handlers = {
            name: self._boundary.around(f"/{service_name}/{name}", policies[name], handler)
            for name, handler in method_handlers.items()
        }
        self._inner.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))
        self._guarded.add(service_name)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Note what is offered; only what `add_registered_method_handlers` guards is served."""
        for handler in generic_rpc_handlers:
            if not isinstance(handler, grpc.ServiceRpcHandler):
                raise TypeError("a handler without a service name cannot be guarded")
            self._offered.add(str(handler.service_name()))

    def add_insecure_port(self, address: str) -> int:
        """Listen without TLS."""
        return self._inner.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen with TLS."""
        return self._inner.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        """Serve, and say so by the health service ("" and "readiness")."""
        if unguarded := self._offered - self._guarded:
            raise ConfigError(f"These services were made by a generator that is too old: {sorted(unguarded)}")
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._inner)
        names = (*sorted(self._guarded), health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._inner)
        await self._inner.start()
        if self._probes is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
            await self._probes.start()
        await self._health.serve(names)

    async def drain(self) -> None:
        """Stop without failing a call: NOT_SERVING, a pause for clients to see it, then finish calls."""
        await self._health.leave()
        await asyncio.sleep(self._settings.drain_pause.total_seconds())
        stopping = asyncio.create_task(self.stop(self._settings.drain_grace.total_seconds()))
        while not stopping.done():
            self._health.end_watches()
            self._boundary.end_idle_streams(self._settings.drain_idle)
            await asyncio.wait([stopping], timeout=0.02)
        await stopping

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls at once and end the running ones after the grace, in seconds."""
        await self._inner.stop(grace)
        if self._probes is not None:
            await self._probes.stop(None)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109  # as in grpc
        """Wait until the server has stopped."""
        return await self._inner.wait_for_termination(timeout)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    options = {
        # Two processes on one port would each get some of the calls.
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": settings.max_message_bytes,
        "grpc.max_send_message_length": settings.max_message_bytes,
        "grpc.keepalive_time_ms": int(settings.keepalive.total_seconds() * 1000),
        "grpc.keepalive_timeout_ms": int(settings.keepalive_timeout.total_seconds() * 1000),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": 1000,
        "grpc.http2.min_recv_ping_interval_without_data_ms": 1000,
    }
    if settings.max_connection_age is not None:
        age = int(settings.max_connection_age.total_seconds() * 1000)
        grace = int(settings.drain_grace.total_seconds() * 1000)
        options |= {"grpc.max_connection_age_ms": age, "grpc.max_connection_age_grace_ms": grace}
    return list(options.items())


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )
