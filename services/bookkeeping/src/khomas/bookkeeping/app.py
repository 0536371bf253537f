"""Builds the service: every part by hand, in the order of their needs."""

from datetime import timedelta

import grpc

from khomas.api.archive.v1.archive_service_pb2_grpc import ArchiveServiceStub
from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2_grpc
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from khomas.api.storage.v1.rule_service_pb2_grpc import RuleServiceStub
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.bookkeeping import tables
from khomas.bookkeeping.activities import Activities
from khomas.bookkeeping.arrivals import Arrivals
from khomas.bookkeeping.cancelling import Cancelling
from khomas.bookkeeping.catching_up import CatchingUp
from khomas.bookkeeping.cells import Cells
from khomas.bookkeeping.checking import Checking
from khomas.bookkeeping.config import BookkeepingSettings
from khomas.bookkeeping.control import Control
from khomas.bookkeeping.counting import Counting
from khomas.bookkeeping.engine import Engine, optional
from khomas.bookkeeping.explaining import Explaining
from khomas.bookkeeping.intake import Intake
from khomas.bookkeeping.items import Items
from khomas.bookkeeping.pausing import Pausing
from khomas.bookkeeping.planner import Planner
from khomas.bookkeeping.productions import Productions
from khomas.bookkeeping.releases import Releases
from khomas.bookkeeping.runs import Runs
from khomas.bookkeeping.servicer import BookkeepingServicer, Parts
from khomas.bookkeeping.submitting import Submitting
from khomas.bookkeeping.trace.outside import Outside
from khomas.bookkeeping.trace.walk import Tracing
from khomas.kit.database import Database
from khomas.kit.events import EventConsumer, EventLog
from khomas.kit.idempotency import Once
from khomas.kit.periodic import every
from khomas.kit.service import Host, Running, Service


def _database(url: str) -> Database:
    return Database(url, metadata=tables.metadata, migrations="khomas.bookkeeping:migrations")


async def migrate(url: str) -> None:
    """Bring the schema up to date."""
    database = _database(url)
    try:
        await database.upgrade()
    finally:
        await database.close()


async def start(settings: BookkeepingSettings, host: Host) -> Running:
    """Start the service in a process that hosts it."""
    database = _database(host.database_url)
    await database.check()
    log = EventLog(database, tables.event)
    once = Once(database, tables.answer)
    catalog = CatalogServiceStub(host.channel("catalog"))
    scheduler = SchedulerServiceStub(host.channel("scheduler"))
    pausing = Pausing(database, log)
    arrivals = Arrivals(database, log, catalog, pausing)
    intake, planner = Intake(database, log, catalog, pausing), Planner(database, log)
    submitting = Submitting(database, log, scheduler, pausing)
    activities = Activities(database, log)
    storage, rules = StorageServiceStub(host.channel("storage")), RuleServiceStub(host.channel("storage"))
    archive = ArchiveServiceStub(host.channel("archive"))
    releases = Releases(database, activities, archive)
    cancelling = Cancelling(database, scheduler)
    steps = (arrivals.list_all, intake.work, planner.work, submitting.work, cancelling.work, releases.work)
    counting = Counting(log)
    catching_up = CatchingUp(database, counting, activities, scheduler)
    engine = Engine(database, arrivals, counting, activities, releases, steps, settings.poll)
    parts = Parts(
        productions=Productions(database, once, log, Checking(catalog, scheduler)),
        control=Control(once, log),
        cells=Cells(database),
        items=Items(database),
        activities=activities,
        explaining=Explaining(database),
        runs=Runs(database, once, log),
        tracing=Tracing(database, Outside(catalog, scheduler, storage, rules)),
        engine=engine,
        log=log,
    )
    files = EventConsumer(database, tables.event_cursor, name="catalog", watch=catalog.WatchEvents)
    jobs = EventConsumer(
        database,
        tables.event_cursor,
        name="scheduler",
        watch=scheduler.WatchEvents,
        filter_text='kind = "scheduler.job.finished"',
    )
    uploads = EventConsumer(
        database,
        tables.event_cursor,
        name="storage",
        watch=storage.WatchEvents,
        filter_text='kind = "storage.upload.committed"',
    )
    published = EventConsumer(
        database,
        tables.event_cursor,
        name="archive",
        watch=archive.WatchEvents,
        filter_text='kind = "archive.release.changed"',
    )

    def add_to(server: grpc.aio.Server) -> None:
        bookkeeping_service_pb2_grpc.add_BookkeepingServiceServicer_to_server(BookkeepingServicer(parts), server)

    return Running(
        add_to=add_to,
        background={
            "engine": engine.run,
            "catalog": lambda: files.run(engine.catalog_events, engine.relist),
            "scheduler": lambda: jobs.run(engine.scheduler_events, catching_up.work),
            "storage": optional(lambda: uploads.run(engine.storage_events, engine.missed_uploads)),
            "archive": optional(lambda: published.run(engine.archive_events, releases.relist)),
            "housekeeping": every(timedelta(hours=1), once.prune, log.prune),
        },
        close=database.close,
        parts=database,
    )


service = Service("bookkeeping", BookkeepingSettings, start, migrate)
