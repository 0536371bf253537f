"""Real servers for tests: `async with serve(service) as served`."""

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from khomas.kit.auth.scopes import EVERYTHING
from khomas.kit.auth.tokens import IssuedTokens
from khomas.kit.channel import ServiceChannel, open_channel
from khomas.kit.config import ServerSettings
from khomas.kit.embedded import SETTINGS, Installation, Layout, embedded
from khomas.kit.service import Running, Service
from khomas.kit.telemetry.recorder import Recorder


@dataclass(frozen=True, slots=True)
class _Fixed:
    value: str

    def token(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and ways to talk to it."""

    installation: Installation
    state: Path
    # Carries a token for everything.
    channel: grpc.aio.Channel
    # Carries no token.
    bare_channel: grpc.aio.Channel

    @property
    def endpoint(self) -> str:
        """Return "127.0.0.1:port"."""
        return self.installation.endpoint

    @property
    def services(self) -> Mapping[str, Running]:
        """Return what the services' start functions gave, by name."""
        return self.installation.services

    @property
    def http(self) -> Mapping[str, str]:
        """Return the addresses of the HTTP doors, by service name."""
        return self.installation.http

    def token(
        self,
        capabilities: Iterable[str] = EVERYTHING,
        *,
        subject: str = "tester",
        audience: str | None = None,
        expires_in: timedelta = timedelta(hours=1),
    ) -> str:
        """Issue a token, for everything unless told."""
        return self.installation.issuer.token(subject, capabilities, audience=audience, expires_in=expires_in)

    def channel_with(self, token: str) -> grpc.aio.Channel:
        """Return a channel that carries this token."""
        return ServiceChannel(self.bare_channel, "server", _Fixed(token))

    def channel_for(self, *capabilities: str, subject: str = "tester") -> grpc.aio.Channel:
        """Return a channel of somebody who has only these capabilities."""
        return self.channel_with(self.token(capabilities, subject=subject))


@asynccontextmanager
async def serve(
    *services: Service[Any],
    state: Path | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    database_urls: Mapping[str, str] | None = None,
    vo: str = "hess",
    server: ServerSettings = SETTINGS,
    recorder: Recorder | None = None,
) -> AsyncIterator[Served]:
    """Run services for a test, on a free loopback port.

    `settings` and `database_urls` go by service name; without an address a service has a SQLite file under
    `state`, which is a temporary folder unless given. Serve the same `state` again to test a restart.
    """
    async with AsyncExitStack() as stack:
        if state is None:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="khomas-")))
        layout = Layout(state, vo=vo, server=server, settings=settings or {}, database_urls=database_urls or {})
        installation = await stack.enter_async_context(embedded(services, layout, recorder))
        bare = await stack.enter_async_context(open_channel(installation.endpoint, plaintext=True))
        tokens = IssuedTokens(installation.issuer, "tester")
        yield Served(installation, state, ServiceChannel(bare, "server", tokens), bare)
