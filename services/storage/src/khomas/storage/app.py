"""Builds the service: every part by hand, in the order of their needs."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import grpc
from sqlalchemy import insert, select

from khomas.api.storage.v1 import storage_service_pb2_grpc
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.periodic import every
from khomas.kit.service import Host, Running, Service
from khomas.storage import tables
from khomas.storage.administration import Administration
from khomas.storage.arrivals import Arrivals
from khomas.storage.catalog import Catalog
from khomas.storage.commits import Commits
from khomas.storage.config import StorageSettings
from khomas.storage.door.app import door
from khomas.storage.downloads import Downloads
from khomas.storage.elements import Elements, Protocols
from khomas.storage.granting import Granting
from khomas.storage.grants import Signer
from khomas.storage.intents import Intents
from khomas.storage.scan import Scans
from khomas.storage.servicer import StorageServicer
from khomas.storage.uploads import Uploads

_MIGRATIONS = "khomas.storage:migrations"
_KEY = "grants"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the tests of the service look at."""

    database: Database
    uploads: Uploads
    commits: Commits
    administration: Administration


def _database(url: str) -> Database:
    return Database(url, metadata=tables.metadata, migrations=_MIGRATIONS)


async def migrate(url: str) -> None:
    """Bring the schema up to date."""
    database = _database(url)
    try:
        await database.upgrade()
    finally:
        await database.close()


async def start(settings: StorageSettings, host: Host) -> Running:
    """Start the service in a process that hosts it."""
    database = _database(host.database_url)
    await database.check()
    executor = ThreadPoolExecutor(settings.data_threads, thread_name_prefix="storage-data")
    log = EventLog(database, tables.event)
    once = Once(database, tables.answer)
    elements, protocols = Elements(database), Protocols.installed()
    signer = Signer(await _signing_key(database))
    granting = Granting(signer, host.http_url, settings.grant_lifetime, settings.max_grant_lifetime)
    catalog = Catalog(host.channel("catalog"), settings.catalog_deadline)
    administration = Administration(database, once, log, elements, protocols)
    uploads = Uploads(database, once, log, elements, protocols, granting, settings.default_storage_element)
    intents = Intents(database, log, 2 * settings.catalog_deadline)
    arrivals = Arrivals(protocols, executor, settings.sha256_limit_bytes)
    commits = Commits(
        intents,
        uploads,
        arrivals,
        elements,
        protocols,
        catalog,
        executor,
        fsync=settings.fsync,
        deadline=settings.catalog_deadline,
    )
    servicer = StorageServicer(
        administration,
        uploads,
        commits,
        Downloads(catalog, elements, protocols, granting),
        Scans(elements, protocols),
        log,
    )
    local_root = settings.local_root or (host.state / "local" if host.issuer else None)
    if local_root is not None:
        await administration.ensure_local(local_root)
    if database.dialect == "sqlite":
        # There is one process only, and it has just started: nobody works on what is leased.
        await intents.release()

    async def close() -> None:
        executor.shutdown(wait=True, cancel_futures=True)
        await protocols.close()
        await database.close()

    def add_to(server: grpc.aio.Server) -> None:
        storage_service_pb2_grpc.add_StorageServiceServicer_to_server(servicer, server)

    return Running(
        add_to=add_to,
        background={
            "commits": every(settings.poll, commits.resume),
            "uploads": every(settings.check_interval, uploads.expire),
            "elements": every(settings.check_interval, administration.check),
            "answers": every(timedelta(hours=1), once.prune, intents.prune),
        },
        http=door(signer, uploads, elements, protocols, executor),
        close=close,
        parts=Parts(database, uploads, commits, administration),
    )


async def _signing_key(database: Database) -> bytes:
    """Return the key of grants; whichever process comes first makes it."""
    query = select(tables.secret.c.value).where(tables.secret.c.name == _KEY)
    async with database.write() as connection:
        key = (await connection.execute(query)).scalar()
        if key is None:
            key = os.urandom(32)
            await connection.execute(insert(tables.secret).values(name=_KEY, value=key))
    return bytes(key)


service = Service("storage", StorageSettings, start, migrate)
