"""Releases as people ask for them, publish them and take them back."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.archive.v1 import archive_service_pb2
from khomas.api.archive.v1 import release_pb2 as pb
from khomas.api.catalog.v1 import dataset_pb2
from khomas.archive.errors import DatasetEmpty, ReleaseExists, ReleaseNotFound, ReleaseState
from khomas.archive.mapping import rules
from khomas.archive.rows import details, release_message
from khomas.archive.tables import export, product, release
from khomas.archive.upstream import Upstream
from khomas.kit.auth.principal import allows, refused_path
from khomas.kit.boundary.call import current_call, current_principal
from khomas.kit.database import AnyRow, Database
from khomas.kit.errors import CapabilityMissing
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Asked, Once
from khomas.kit.ids import new_uid
from khomas.kit.paging import Ordering, list_page

State = pb.Release.State
OFFERED = (State.STATE_READY, State.STATE_PUBLISHED)
_FIELDS = {
    "name": fields.text(release.c.name),
    "state": fields.enum(release.c.state, State),
    "dataset": fields.text(release.c.dataset),
    "owner": fields.text(release.c.owner),
    "create_time": fields.time(release.c.create_time),
}
_ORDER = Ordering(fields={"create_time": release.c.create_time}, unique=release.c.uid, default="create_time desc")


class Releases:
    """Keeps the releases."""

    def __init__(self, database: Database, once: Once, log: EventLog, upstream: Upstream) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._upstream = upstream

    async def create(self, request: archive_service_pb2.CreateReleaseRequest) -> pb.Release:
        """Note what is to be released; a loop prepares it."""
        if (before := await self._once.before(Asked.of(request), pb.Release)) is not None:
            return before
        rules(request.release.mapping)
        await self.releasable(request.release.dataset)
        row = _new_row(request.release)

        async def work(connection: AsyncConnection) -> pb.Release:
            try:
                await connection.execute(insert(release), row)
            except IntegrityError as error:
                raise ReleaseExists(name=row["name"]) from error
            return await changed(connection, self._log, row["uid"])

        return await self._once(request, pb.Release, work)

    async def releasable(self, name: str) -> dataset_pb2.Dataset:
        """Return a dataset, or raise DatasetEmpty, or CapabilityMissing when the caller may not read all its files.

        They are read and offered to everybody with our token, so nobody else asks.
        """
        dataset = await self._upstream.dataset(name)
        if dataset is None or dataset.file_count == 0:
            raise DatasetEmpty(dataset=name)
        principal = current_principal()
        if not allows(principal, "storage.read", ["/"]):
            async for names in self._upstream.names(name):
                if (path := refused_path(principal, "storage.read", names)) is not None:
                    raise CapabilityMissing(capability="storage.read", path=path)
        return dataset

    async def row(self, name: str) -> AnyRow:
        """Read the row of a release."""
        async with self._database.read() as connection:
            return await _row(connection, name)

    async def get(self, name: str) -> pb.Release:
        """Read a release with its products and exports."""
        async with self._database.snapshot() as connection:
            row = await _row(connection, name)
            products = select(product).where(product.c.release_uid == row.uid).order_by(product.c.file)
            exports = select(export).where(export.c.release_uid == row.uid).order_by(export.c.create_time)
            return details(
                release_message(row),
                (await connection.execute(products)).all(),
                (await connection.execute(exports)).all(),
            )

    async def page(self, request: archive_service_pb2.ListReleasesRequest) -> archive_service_pb2.ListReleasesResponse:
        """Read a page of releases."""
        query = select(release).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return archive_service_pb2.ListReleasesResponse(
            releases=[release_message(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def publish(self, request: archive_service_pb2.PublishReleaseRequest) -> pb.Release:
        """Offer a release to everybody."""
        now = datetime.now(UTC)

        async def work(connection: AsyncConnection) -> pb.Release:
            row = await _row(connection, request.name)
            if row.state == State.STATE_PUBLISHED:
                return release_message(row)
            if row.state != State.STATE_READY:
                raise wrong_state(row)
            values = {"state": State.STATE_PUBLISHED, "publish_time": now, "state_time": now}
            return await self._switched(connection, row, values)

        return await self._once(request, pb.Release, work)

    async def withdraw(self, request: archive_service_pb2.WithdrawReleaseRequest) -> pb.Release:
        """Take a release back."""
        now = datetime.now(UTC)

        async def work(connection: AsyncConnection) -> pb.Release:
            row = await _row(connection, request.name)
            if row.state == State.STATE_WITHDRAWN:
                return release_message(row)
            if row.state not in OFFERED:
                raise wrong_state(row)
            values = {"state": State.STATE_WITHDRAWN, "message": request.reason, "state_time": now}
            return await self._switched(connection, row, values)

        return await self._once(request, pb.Release, work)

    async def _switched(self, connection: AsyncConnection, row: AnyRow, values: dict[str, Any]) -> pb.Release:
        """Change a state unless somebody else has changed it since it was read."""
        statement = update(release).where(release.c.uid == row.uid, release.c.version == row.version)
        done = await connection.execute(statement.values(version=row.version + 1, **values))
        if not done.rowcount:
            raise wrong_state(await _row(connection, row.name))
        return await changed(connection, self._log, row.uid)


async def changed(connection: AsyncConnection, log: EventLog, uid: str) -> pb.Release:
    """Read a release back and log the event of its change."""
    row = (await connection.execute(select(release).where(release.c.uid == uid))).one()
    message = release_message(row)
    await log.append(connection, [NewEvent("archive.release.changed", message.name, row.uid, row.origin, message)])
    return message


def wrong_state(row: AnyRow) -> ReleaseState:
    """Say that a release is in the wrong state."""
    return ReleaseState(name=row.name, state=State.Name(row.state).removeprefix("STATE_"))


async def _row(connection: AsyncConnection, name: str) -> AnyRow:
    row = (await connection.execute(select(release).where(release.c.name == name))).one_or_none()
    if row is None:
        raise ReleaseNotFound(name=name)
    return row


def _new_row(given: pb.Release) -> dict[str, Any]:
    now, call = datetime.now(UTC), current_call()
    return {
        "uid": new_uid(),
        "name": given.name,
        "title": given.title,
        "description": given.description,
        "dataset": given.dataset,
        "mapping": given.mapping.SerializeToString(deterministic=True),
        "authority": given.authority,
        "terms": given.terms,
        "state": State.STATE_PREPARING,
        "problems": [],
        "message": "",
        "record_count": 0,
        "content_digest": "",
        "owner": current_principal().subject,
        "origin": call.origin if call else "",
        "version": 1,
        "create_time": now,
        "state_time": now,
        "publish_time": None,
        "next_attempt_time": now,
    }
