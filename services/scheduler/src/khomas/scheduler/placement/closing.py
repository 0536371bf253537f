"""The calls that close backends to new jobs and open them again, and the table of them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.placement_pb2 import Backend
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering.fields import nearest
from khomas.kit.idempotency import Once
from khomas.scheduler.errors import BackendNotFound
from khomas.scheduler.placement.computing_elements import backend_messages
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.placement.standing import Standing, Status
from khomas.scheduler.signals import Signal
from khomas.scheduler.store.standings import forget_old, our_jobs, read_records, read_standings, write_standing

EVENT = "scheduler.backend.changed"


@dataclass(frozen=True, slots=True)
class Closing:
    """Decides about backends; what is decided is durable, and every process reads it."""

    database: Database
    once: Once
    events: EventLog
    sites: Sites
    due: Signal

    async def page(self) -> pb.ListBackendsResponse:
        """All backends with what is known of them now."""
        async with self.sites.deciding, self.database.read() as connection:
            await read_into(connection, self.sites)
            return pb.ListBackendsResponse(backends=backend_messages(self.sites, await our_jobs(connection)))

    async def refresh(self) -> None:
        """Read what was decided and written down, by whatever process."""
        async with self.sites.deciding, self.database.read() as connection:
            await read_into(connection, self.sites)

    async def prune(self) -> None:
        """Forget what happened too long ago to count."""
        async with self.database.write() as connection:
            await forget_old(connection)

    async def ban(self, request: pb.BanBackendRequest) -> Backend:
        """Close a backend for a while."""

        def decide(name: str, now: datetime, actor: str) -> Standing:
            until = now + request.duration.ToTimedelta() if request.HasField("duration") else None
            return Standing(name, Status.BANNED, request.reason, actor, now, until)

        return await self._decide(request, decide)

    async def drain(self, request: pb.DrainBackendRequest) -> Backend:
        """Close a backend until it is opened."""
        return await self._decide(
            request, lambda name, now, actor: Standing(name, Status.DRAINING, request.reason, actor, now)
        )

    async def unban(self, request: pb.UnbanBackendRequest) -> Backend:
        """Open a backend."""
        answer = await self._decide(request, lambda name, now, actor: Standing(name))
        self.sites[_id(request.name)].reputation.forget()
        self.due.set()
        return answer

    async def _decide(
        self,
        request: pb.BanBackendRequest | pb.DrainBackendRequest | pb.UnbanBackendRequest,
        decide: Callable[[str, datetime, str], Standing],
    ) -> Backend:
        name = _id(request.name)
        if name not in self.sites:
            close = nearest(name, sorted(self.sites.by_name)) or sorted(self.sites.by_name)
            raise BackendNotFound(name=request.name, nearest=", ".join(close))

        async def work(connection: AsyncConnection) -> Backend:
            await write_standing(connection, decide(name, datetime.now(UTC), current_principal().subject))
            return await tell(connection, self.events, self.sites, name)

        async with self.sites.deciding:
            return await self.once(request, Backend, work)


async def read_into(connection: AsyncConnection, sites: Sites) -> None:
    """Read what was decided about backends and how they did; whoever calls it holds `sites.deciding`."""
    standings, records = await read_standings(connection), await read_records(connection)
    for site in sites:
        site.standing = standings.get(site.name, Standing(site.name))
        site.record = records.get(site.name, site.record)


async def tell(connection: AsyncConnection, events: EventLog, sites: Sites, name: str) -> Backend:
    """Append the event of a decision in its transaction, and say how the backend is after it."""
    await read_into(connection, sites)
    written = backend_messages(sites, await our_jobs(connection))
    (backend,) = [one for one in written if one.name == f"backends/{name}"]
    await events.append(connection, [NewEvent(EVENT, backend.name, name, "", backend)])
    return backend


def _id(name: str) -> str:
    return name.removeprefix("backends/")
