"""Builds the service: every part by hand, in the order of their needs."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc

from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.periodic import every
from khomas.kit.service import Host, Running, Service
from khomas.scheduler import tables
from khomas.scheduler.answers.explaining import Explaining
from khomas.scheduler.answers.job_commands import JobCommands
from khomas.scheduler.answers.jobs import Jobs
from khomas.scheduler.answers.logs import Logs
from khomas.scheduler.answers.slow_jobs import SlowJobs
from khomas.scheduler.catalog import Catalog
from khomas.scheduler.config import SchedulerSettings
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.engine.engine import Engine
from khomas.scheduler.engine.transcript import Transcript
from khomas.scheduler.intake.sandboxes import Sandboxes
from khomas.scheduler.orders import Orders
from khomas.scheduler.placement.closing import Closing
from khomas.scheduler.placement.locality import Locality
from khomas.scheduler.placement.shares import Tree
from khomas.scheduler.placement.sites import Sites, open_sites
from khomas.scheduler.servicer import SchedulerServicer
from khomas.scheduler.storage import Storage
from khomas.scheduler.store.accounting import Accounting
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.changes import Changes
from khomas.scheduler.store.control import Control
from khomas.scheduler.store.leadership import Leadership
from khomas.scheduler.store.listing import Listing
from khomas.scheduler.store.lookup import Lookup
from khomas.scheduler.store.retrying import Retrying
from khomas.scheduler.store.submission import Submission

if TYPE_CHECKING:
    from aiohttp import web

# A backend that is slow to answer must not keep the service from starting.
_FIRST_LOOK_SECONDS = 5.0
# What the engine of another process decided about backends; our own reads it all the time.
_REFRESH = timedelta(seconds=10)
_MIGRATIONS = "khomas.scheduler:migrations"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running scheduler; tests of the service look at them."""

    database: Database
    events: EventLog
    once: Once
    desk: Desk
    engine: Engine
    closing: Closing

    async def close(self) -> None:
        """Let the next process work at once, then close everything. Jobs go on."""
        await self.desk.leadership.give_up()
        await self.desk.transcript.write()
        await self.desk.sites.close()
        await self.database.close()


def open_database(url: str) -> Database:
    """Open the service's database."""
    return Database(url, metadata=tables.metadata, migrations=_MIGRATIONS)


async def migrate(url: str) -> None:
    """Bring the schema up to date."""
    database = open_database(url)
    try:
        await database.upgrade()
    finally:
        await database.close()


async def start(settings: SchedulerSettings, host: Host) -> Running:
    """Start the service in a process that hosts it."""
    return await start_with(settings, host, open_sites(settings, host.state))


async def start_with(settings: SchedulerSettings, host: Host, sites: Sites) -> Running:
    """Start the service over these backends."""
    database = open_database(host.database_url)
    await database.check()
    parts = build(settings, host, database, sites)
    await sites.look(_FIRST_LOOK_SECONDS)
    host.gauge("khomas.credential.seconds_left", "", "How long credentials last", sites.wallet.seconds_left)
    servicer = _servicer(parts)

    def add_to(server: grpc.aio.Server) -> None:
        add_SchedulerServiceServicer_to_server(servicer, server)

    return Running(
        add_to=add_to,
        background={
            **({"engine": parts.engine.run} if settings.engine else {}),
            "backends": every(_REFRESH, parts.closing.refresh),
            "credentials": every(settings.keeper.look, sites.wallet.credentials.refresh),
            "housekeeping": every(timedelta(hours=1), parts.once.prune, parts.events.prune, parts.closing.prune),
        },
        http=_door(settings, host, servicer, parts) if settings.tes.enabled else None,
        close=parts.close,
        parts=parts,
    )


def _door(settings: SchedulerSettings, host: Host, servicer: SchedulerServicer, parts: Parts) -> "web.Application":
    # A scheduler without the door starts without what it needs.
    from khomas.scheduler.tes.door import door

    return door(settings.tes, host, servicer, parts.desk.folder)


def build(settings: SchedulerSettings, host: Host, database: Database, sites: Sites) -> Parts:
    """Make the parts over a database and backends."""
    events = EventLog(database, tables.event)
    deadline = settings.service_deadline.total_seconds()
    storage = Storage(host.channel("storage"), deadline, settings.grant_lifetime)
    catalog = Catalog(CatalogServiceStub(host.channel("catalog")), deadline)
    desk = Desk(
        settings=settings,
        database=database,
        changes=Changes(events),
        leadership=Leadership(database, settings.lease),
        blueprints=Blueprints(),
        sites=sites,
        storage=storage,
        catalog=catalog,
        sandboxes=Sandboxes(host.state / "sandboxes"),
        accounting=Accounting(Tree(settings.shares, settings.default_share), settings.share_half_life),
        locality=Locality(catalog, storage),
        folder=(host.state / "jobs").absolute(),
        transcript=Transcript(database),
    )
    once = Once(database, tables.answer)
    return Parts(database, events, once, desk, Engine(desk), Closing(database, once, events, sites, desk.due))


def _servicer(parts: Parts) -> SchedulerServicer:
    desk = parts.desk
    lookup = Lookup(desk.blueprints)
    logs = Logs(desk.database, lookup, desk.sites, desk.sandboxes, desk.folder)
    slow_jobs = SlowJobs(desk.database, desk.sites, desk.settings.slow_after)
    orders = Orders(
        database=desk.database,
        once=parts.once,
        locality=desk.locality,
        sites=desk.sites,
        submission=Submission(parts.events, desk.changes, desk.sandboxes),
        control=Control(lookup, desk.changes),
        retrying=Retrying(lookup),
        slow_jobs=slow_jobs,
        accounting=desk.accounting,
        sandboxes=desk.sandboxes,
        blueprints=desk.blueprints,
        due=desk.due,
        cancelling=desk.cancelling,
    )
    jobs = Jobs(desk.database, lookup, Listing(desk.blueprints), desk.sites, desk.accounting)
    explaining = Explaining(desk.database, lookup, desk.sites, logs, desk.locality)
    commands = JobCommands(desk.database, lookup)
    return SchedulerServicer(orders, jobs, logs, explaining, slow_jobs, commands, parts.closing, parts.events)


service = Service("scheduler", SchedulerSettings, start, migrate)
