"""Builds the service: every part by hand, in the order of their needs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
from sqlalchemy import update

from khomas.api.archive.v1 import archive_service_pb2_grpc
from khomas.archive import tables
from khomas.archive.config import ArchiveSettings
from khomas.archive.exporters.interface import installed_exporters
from khomas.archive.exporting import Exporting
from khomas.archive.preparing import Preparing
from khomas.archive.provenance import Provenance
from khomas.archive.reading import Reader
from khomas.archive.records import Records
from khomas.archive.releases import Releases
from khomas.archive.servicer import ArchiveServicer
from khomas.archive.upstream import Upstream
from khomas.archive.validation import Validation
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.leases import FREE
from khomas.kit.periodic import every
from khomas.kit.service import Host, Running, Service

_MIGRATIONS = "khomas.archive:migrations"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running archive; tests of the service look at them."""

    database: Database
    executor: ThreadPoolExecutor
    upstream: Upstream
    releases: Releases
    preparing: Preparing

    async def close(self) -> None:
        """Let threads end, then close what they use."""
        self.executor.shutdown(wait=True, cancel_futures=True)
        await self.upstream.close()
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


async def start(settings: ArchiveSettings, host: Host) -> Running:
    """Start the service in a process that hosts it."""
    database = open_database(host.database_url)
    await database.check()
    if database.dialect == "sqlite":
        # There is one process only, and it has just started: nobody works on what is leased, and what the end
        # of the last one interrupted need not wait.
        async with database.write() as connection:
            values = {**FREE, "next_attempt_time": datetime.now(UTC)}
            await connection.execute(update(tables.release).values(values))
    log, once = EventLog(database, tables.event), Once(database, tables.answer)
    executor = ThreadPoolExecutor(settings.data_threads, thread_name_prefix="archive-data")
    upstream = Upstream(
        host.channel("catalog"),
        host.channel("storage"),
        host.state / "work",
        executor,
        settings.upstream_deadline,
        local_paths=settings.local_paths,
    )
    reader = Reader(upstream, settings.batch_files, settings.access_url)
    releases = Releases(database, once, log, upstream)
    records = Records(database, releases)
    provenance = Provenance(host.channel("bookkeeping") if settings.bookkeeping else None, settings.upstream_deadline)
    preparing = Preparing(
        database,
        log,
        upstream,
        reader,
        provenance,
        vo=host.vo,
        owner=new_uid(),
        lease=settings.lease,
        pause=settings.pause,
    )
    servicer = ArchiveServicer(
        releases,
        Validation(releases, upstream, reader, host.vo),
        records,
        Exporting(database, once, log, releases, records, upstream, installed_exporters(), host.vo),
        log,
    )

    def add_to(server: grpc.aio.Server) -> None:
        archive_service_pb2_grpc.add_ArchiveServiceServicer_to_server(servicer, server)

    parts = Parts(database, executor, upstream, releases, preparing)
    return Running(
        add_to=add_to,
        background={
            "releases": every(settings.poll, preparing.work),
            "housekeeping": every(timedelta(hours=1), once.prune, log.prune),
        },
        close=parts.close,
        parts=parts,
    )


service = Service("archive", ArchiveSettings, start, migrate)
