"""Builds the service: every part by hand, in the order of their needs."""

from datetime import timedelta

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2_grpc
from khomas.catalog import tables
from khomas.catalog.adoptions import Adoptions
from khomas.catalog.changes import Changes
from khomas.catalog.config import CatalogSettings
from khomas.catalog.creation import Creation
from khomas.catalog.datasets import Datasets
from khomas.catalog.deletions import Deletions
from khomas.catalog.directories import Directories
from khomas.catalog.files import Files
from khomas.catalog.keys import Keys
from khomas.catalog.lineage import Lineage
from khomas.catalog.located import Located
from khomas.catalog.membership import Membership
from khomas.catalog.servicer import CatalogServicer, Parts
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.periodic import every
from khomas.kit.service import Host, Running, Service


def _database(url: str) -> Database:
    return Database(url, metadata=tables.metadata, migrations="khomas.catalog:migrations")


async def migrate(url: str) -> None:
    """Bring the schema up to date."""
    database = _database(url)
    try:
        await database.upgrade()
    finally:
        await database.close()


async def start(settings: CatalogSettings, host: Host) -> Running:
    """Start the service in a process that hosts it."""
    database = _database(host.database_url)
    await database.check()
    log = EventLog(database, tables.event)
    once = Once(database, tables.answer)
    keys = Keys(database, once)
    membership = Membership(database, log)
    creation = Creation(database, once, log, keys, Directories(database), membership)
    changes = Changes(database, once, log, keys)
    parts = Parts(
        creation=creation,
        files=Files(database, keys),
        located=Located(database),
        changes=changes,
        deletions=Deletions(database, once, log, changes, settings.undo_window),
        lineage=Lineage(database),
        keys=keys,
        datasets=Datasets(database, once, log, keys, membership),
        adoptions=Adoptions(database, once, log, keys, creation, host.channel("storage"), settings.adoption_batch),
        log=log,
    )

    def add_to(server: grpc.aio.Server) -> None:
        catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server(CatalogServicer(parts), server)

    return Running(
        add_to=add_to,
        background={
            "adoptions": parts.adoptions.work,
            "deletions": every(settings.poll, parts.deletions.purge),
            "housekeeping": every(timedelta(hours=1), once.prune, log.prune),
        },
        close=database.close,
        parts=database,
    )


service = Service("catalog", CatalogSettings, start, migrate)
