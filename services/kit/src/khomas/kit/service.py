"""What a service gives to whoever hosts it, and what it gets."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.tokens import TokenSource
from khomas.kit.auth.verifier import Verifier
from khomas.kit.config import ServiceSettings
from khomas.kit.telemetry.recorder import Gauge, no_gauge

# Services without a door need no 8 MiB of HTTP.
if TYPE_CHECKING:
    from aiohttp import web

S = TypeVar("S", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Host:
    """What a running service gets from the process that hosts it."""

    service: str
    vo: str
    # A folder of this service alone; it exists.
    state: Path
    # SQLAlchemy address with the async driver: sqlite+aiosqlite:///…, postgresql+asyncpg://…
    database_url: str
    # Checks tokens where they do not come over gRPC, as in an HTTP door.
    verifier: Verifier
    # Tokens of this service itself.
    tokens: TokenSource
    # Only in embedded mode; None in production, where tokens come from the VO's issuer.
    issuer: DevelopmentIssuer | None
    # Channel to the service of an area, with our token and a deadline on every call.
    channel: Callable[[str], grpc.aio.Channel]
    # Where the HTTP door of this service is reached, without a slash at the end. Set before the service
    # starts, so it may be written into answers; nothing answers there without `Running.http`.
    http_url: str
    # Shows figures of the service among its metrics.
    gauge: Gauge = no_gauge


async def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class Running:
    """A started service: its servicers, loops and doors."""

    # Calls the generated add_XServicer_to_server for every servicer.
    add_to: Callable[[grpc.aio.Server], None]
    # Loops that run until the drain, by name. They start after the server does; one that raises is
    # logged and started again after a pause; at the drain they are cancelled.
    background: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    # HTTP door, served on a port of its own.
    http: "web.Application | None" = None
    # Called last: closes database and clients.
    close: Callable[[], Awaitable[None]] = _nothing
    # What tests of the service itself may look at, as its app.py likes.
    parts: Any = None


@dataclass(frozen=True, slots=True)
class Service(Generic[S]):
    """A service as the entry-point group `khomas.services` gives it."""

    # The area in the proto package, "catalog".
    name: str
    settings: type[S]
    start: Callable[[S, Host], Awaitable[Running]]
    # Brings the schema of the database at this address up to date. Hosts call it before start in embedded
    # mode; in production it is a command of its own.
    migrate: Callable[[str], Coroutine[Any, Any, None]] | None = None
