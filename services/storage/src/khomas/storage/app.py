"""Builds the service: every part by hand, in the order of their needs."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import grpc
from sqlalchemy import insert, select, update

from khomas.api.storage.v1 import link_service_pb2_grpc, storage_service_pb2_grpc
from khomas.kit.credentials import open_all
from khomas.kit.database import Database
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.leases import FREE
from khomas.kit.periodic import every
from khomas.kit.service import Host, Running, Service
from khomas.storage import tables
from khomas.storage.catalog import Catalog
from khomas.storage.config import StorageSettings
from khomas.storage.deletions.deletions import Deletions
from khomas.storage.door.app import door
from khomas.storage.door.dav import Dav, dav_of
from khomas.storage.door.third_party import Peers
from khomas.storage.elements.administration import Administration
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.elements.emptiness import Emptiness
from khomas.storage.following import Following
from khomas.storage.grants.downloads import Downloads
from khomas.storage.grants.granting import Granting
from khomas.storage.grants.grants import Signer
from khomas.storage.links import tables as link_tables
from khomas.storage.recalls import tables as recall_tables
from khomas.storage.recalls.parts import Recalling
from khomas.storage.reconciling import tables as integrity_tables
from khomas.storage.reconciling.parts import Integrity
from khomas.storage.rules import tables as rule_tables
from khomas.storage.rules.accesses import Accesses
from khomas.storage.rules.parts import placement
from khomas.storage.scanning.scan import Scans
from khomas.storage.servicer import StorageServicer
from khomas.storage.transfers.transferring import Transferring
from khomas.storage.transfers.transfers import Transfers
from khomas.storage.transfers.watching import Watching
from khomas.storage.uploads.arrivals import Arrivals
from khomas.storage.uploads.commits import Commits
from khomas.storage.uploads.intents import Intents
from khomas.storage.uploads.placing import Placing
from khomas.storage.uploads.uploads import Uploads

_MIGRATIONS = "khomas.storage:migrations"
_KEY = "grants"
# Modules that declare tables beside those of `tables`: naming them here lets nobody forget one.
_TABLES = (tables, link_tables, rule_tables, integrity_tables, recall_tables)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running storage; tests of the service look at them."""

    database: Database
    log: EventLog
    once: Once
    elements: Elements
    protocols: Protocols
    executor: ThreadPoolExecutor
    signer: Signer
    administration: Administration
    uploads: Uploads
    intents: Intents
    commits: Commits
    downloads: Downloads
    transferring: Transferring
    transfers: Transfers
    deletions: Deletions
    following: Following
    accesses: Accesses
    integrity: Integrity
    recalling: Recalling

    async def close(self) -> None:
        """Let threads end, then close what they use."""
        self.executor.shutdown(wait=True, cancel_futures=True)
        await self.transferring.outside.close()
        await self.protocols.close()
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


async def start(settings: StorageSettings, host: Host) -> Running:
    """Start the service in a process that hosts it."""
    parts = await _built(settings, host, open_database(host.database_url))
    local_root = settings.local_root or (host.state / "local" if host.issuer else None)
    if local_root is not None:
        await parts.administration.ensure_local(local_root)
    if parts.database.dialect == "sqlite":
        # There is one process only, and it has just started: nobody works on what is leased.
        await _free_all(parts.database)
    servicer = StorageServicer(
        parts.administration,
        parts.uploads,
        parts.commits,
        parts.downloads,
        parts.transfers,
        Watching(parts.database),
        parts.deletions,
        Scans(parts.elements, parts.protocols),
        parts.log,
    )

    placing = placement(
        settings, host, parts.database, parts.once, parts.log, parts.elements, parts.transfers, parts.accesses
    )

    def add_to(server: grpc.aio.Server) -> None:
        placing.add_to(server)
        storage_service_pb2_grpc.add_StorageServiceServicer_to_server(servicer, server)
        parts.integrity.add_to(server)
        parts.recalling.add_to(server)
        link_service_pb2_grpc.add_LinkServiceServicer_to_server(parts.transferring.links, server)

    return Running(
        add_to=add_to,
        background={
            **placing.background,
            **parts.integrity.background,
            "recalls": every(settings.poll, parts.recalling.worker.work),
            "commits": every(settings.poll, parts.commits.resume),
            "transfers": parts.transferring.mover.run,
            "links": every(timedelta(seconds=10), parts.transferring.measures.refresh),
            "deletions": every(settings.poll, parts.deletions.work),
            "leftovers": every(settings.poll, parts.transferring.leftovers.work),
            "catalog": parts.following.run,
            "uploads": every(settings.check_interval, parts.uploads.expire, parts.uploads.prune),
            # By itself: a disk of the network may keep it waiting.
            "staging": every(settings.check_interval, parts.uploads.sweep),
            "elements": every(settings.check_interval, parts.administration.check),
            "housekeeping": every(
                timedelta(hours=1),
                parts.once.prune,
                parts.log.prune,
                parts.intents.prune,
                # What uploads have staged elsewhere is hidden as long as grants last.
                partial(parts.protocols.tidy, settings.max_grant_lifetime + timedelta(days=1)),
                parts.transfers.prune,
                parts.transferring.measures.prune,
                parts.recalling.worker.prune,
            ),
        },
        http=door(
            parts.signer, parts.uploads, parts.elements, parts.protocols, parts.executor, _tree(settings, host, parts)
        ),
        close=parts.close,
        parts=parts,
    )


def _tree(settings: StorageSettings, host: Host, parts: Parts) -> Dav:
    return dav_of(
        host.verifier,
        host.http_url,
        parts.database,
        parts.elements,
        parts.protocols,
        parts.executor,
        Peers(settings.door_peers, settings.door_authorities),
        flush=settings.fsync,
    )


async def _built(settings: StorageSettings, host: Host, database: Database) -> Parts:
    await database.check()
    owner = new_uid()
    executor = ThreadPoolExecutor(settings.data_threads, thread_name_prefix="storage-data")
    log, once = EventLog(database, tables.event), Once(database, tables.answer)
    credentials = open_all(settings.credentials)
    elements, protocols = Elements(database), Protocols.installed(credentials, durable=settings.fsync)
    catalog = Catalog(host.channel("catalog"), settings.catalog_deadline)
    signer, accesses = Signer(await _signing_key(database)), Accesses(database)
    granting = Granting(signer, host.http_url, settings.grant_lifetime, settings.max_grant_lifetime)
    uploads = Uploads(database, once, log, elements, protocols, granting, settings.default_storage_element)
    intents = Intents(database, log, owner, 2 * settings.catalog_deadline)
    arrivals = Arrivals(protocols, executor, settings.sha256_limit_bytes)
    recalling = Recalling.built(settings, database, once, log, elements, protocols, catalog, owner)
    transferring = Transferring.built(
        settings, database, log, once, elements, protocols, catalog, credentials, owner, recalling.online
    )
    integrity = Integrity.built(
        settings, database, once, log, catalog, elements, protocols, transferring.transfers, owner
    )
    return Parts(
        database=database,
        log=log,
        once=once,
        elements=elements,
        protocols=protocols,
        executor=executor,
        signer=signer,
        administration=Administration(database, once, log, elements, Emptiness(database, catalog), protocols),
        uploads=uploads,
        intents=intents,
        commits=Commits(
            intents,
            uploads,
            arrivals,
            elements,
            Placing(protocols, executor, fsync=settings.fsync),
            catalog,
            deadline=settings.catalog_deadline,
        ),
        downloads=Downloads(catalog, elements, protocols, granting, recalling.online, transferring.measures, accesses),
        accesses=accesses,
        transferring=transferring,
        transfers=transferring.transfers,
        deletions=Deletions(
            database,
            log,
            catalog,
            elements,
            protocols,
            integrity.policies,
            owner=owner,
            lease=settings.lease,
            pause=settings.deletion_pause,
        ),
        following=Following(database, log, catalog, integrity.recording),
        integrity=integrity,
        recalling=recalling,
    )


async def _free_all(database: Database) -> None:
    """Let go of everything that is leased."""
    async with database.write() as connection:
        for table in (
            tables.upload_commit,
            tables.transfer,
            tables.deletion,
            recall_tables.recall,
            *rule_tables.LEASED,
            *integrity_tables.LEASED,
        ):
            await connection.execute(update(table).values(FREE).where(table.c.lease_owner.is_not(None)))


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
