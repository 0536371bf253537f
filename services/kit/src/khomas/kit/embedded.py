"""Hosts services in one process on one loopback port, for one person or a test."""

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.tokens import IssuedTokens
from khomas.kit.auth.verifier import Verifier
from khomas.kit.boundary.boundary import Boundary
from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.config import AuthSettings, ServerSettings
from khomas.kit.hosting import Place, hosted, reserved_socket
from khomas.kit.server import Server
from khomas.kit.service import Host, Running, Service
from khomas.kit.telemetry.recorder import PlainRecorder, Recorder

# A free port, and a quick drain because nobody balances over several such servers.
SETTINGS = ServerSettings(
    listen="127.0.0.1:0",
    drain_pause=timedelta(0),
    drain_grace=timedelta(seconds=5),
    drain_idle=timedelta(milliseconds=100),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an embedded installation lives and listens."""

    state: Path
    vo: str = "local"
    server: ServerSettings = SETTINGS
    # Service name to the address of its HTTP door; others take a free port.
    http_listen: Mapping[str, str] = field(default_factory=dict)
    # Service name to database address; others have a SQLite file in the state folder.
    database_urls: Mapping[str, str] = field(default_factory=dict)
    # Service name to values of its settings that shall differ from the default.
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Installation:
    """A running embedded installation."""

    endpoint: str
    issuer: DevelopmentIssuer
    verifier: Verifier
    services: Mapping[str, Running]
    # Addresses of the HTTP doors, by service name.
    http: Mapping[str, str]


@asynccontextmanager
async def embedded(
    services: Sequence[Service[Any]], layout: Layout, recorder: Recorder | None = None
) -> AsyncIterator[Installation]:
    """Bring the databases up to date and run the services until the block ends."""
    layout.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    issuer = DevelopmentIssuer.open(layout.state, layout.vo)
    verifier = Verifier([issuer.trusted], AuthSettings(audiences=(issuer.audience,)))
    limits = layout.server
    recorder = recorder or PlainRecorder()
    server = Server(limits, Boundary(verifier, recorder, limits.max_calls, limits.max_streams))
    endpoint = f"{limits.listen.rpartition(':')[0]}:{server.bind()}"
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(open_channel(endpoint, plaintext=True))
        places = [_place(service, layout, issuer, verifier, connection, recorder) for service in services]
        for place in places:
            if place.service.migrate is not None:
                await place.service.migrate(place.host.database_url)
        running = await stack.enter_async_context(hosted(server, places))
        doors = {place.host.service: place.host.http_url for place in places if running[place.host.service].http}
        yield Installation(endpoint, issuer, verifier, running, doors)


def _place(
    service: Service[Any],
    layout: Layout,
    issuer: DevelopmentIssuer,
    verifier: Verifier,
    connection: grpc.aio.Channel,
    recorder: Recorder,
) -> Place:
    folder = layout.state / service.name
    folder.mkdir(exist_ok=True, mode=0o700)
    tokens = IssuedTokens(issuer, f"service:{service.name}")
    door = reserved_socket(layout.http_listen.get(service.name, "127.0.0.1:0"))
    host = Host(
        service=service.name,
        vo=layout.vo,
        state=folder,
        database_url=layout.database_urls.get(
            service.name, f"sqlite+aiosqlite:///{(folder / service.name).absolute()}.sqlite"
        ),
        verifier=verifier,
        tokens=tokens,
        issuer=issuer,
        channel=lambda area: ServiceChannel(connection, area, tokens),
        http_url=_http_url(door),
        gauge=recorder.gauge,
    )
    return Place(service, service.settings(**layout.settings.get(service.name, {})), host, door)


def _http_url(door: socket.socket) -> str:
    host, port = door.getsockname()[:2]
    return f"http://{host}:{port}"
