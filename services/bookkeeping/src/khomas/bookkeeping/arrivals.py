"""Notes which files the stages have to look at: told by events, or found by listing."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import grpc
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1.production_pb2 import DataSource, Production, Stage
from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.common.v1.event_pb2 import Event
from khomas.bookkeeping.items import items_changed
from khomas.bookkeeping.losing import bring_back, lose
from khomas.bookkeeping.pausing import Pausing
from khomas.bookkeeping.progress import complete_by_name
from khomas.bookkeeping.records import Listing
from khomas.bookkeeping.stages import takes_outputs, upstream_complete
from khomas.bookkeeping.tables import arrival, production, stage
from khomas.kit.database import AnyRow, Database, in_values, insert_many
from khomas.kit.events import EventLog

_OPEN = (Production.STATE_ACTIVE, Production.STATE_PAUSED)
_LISTING_SECONDS = 600.0


async def data_stages(connection: AsyncConnection) -> list[tuple[AnyRow, Stage]]:
    """Return the stages that still take in files, with what was asked of them."""
    query = select(stage).join(production).where(production.c.state.in_(_OPEN), stage.c.complete.is_(False))
    rows = (await connection.execute(query.order_by(stage.c.id))).all()
    stages = [(row, Stage.FromString(row.wanted)) for row in rows]
    return [(row, wanted) for row, wanted in stages if wanted.HasField("data")]


def row_of(stage_id: int, file: str, uid: str = "", *, selected: bool = False) -> dict[str, object]:
    """Return the row of a file to look at."""
    return {
        "stage_id": stage_id,
        "file": file,
        "file_uid": uid,
        "selected": selected,
        "create_time": datetime.now(UTC),
    }


def _named(source: DataSource, file: str) -> bool:
    return not source.match or fnmatchcase(file.rpartition("/")[2], source.match)


def _below(source: DataSource, file: str) -> bool:
    return not source.directory or file.startswith(f"{source.directory.rstrip('/')}/")


class Arrivals:
    """Follows the catalogue for the stages that work on files."""

    def __init__(self, database: Database, log: EventLog, catalog: CatalogServiceStub, pausing: Pausing) -> None:
        self._database = database
        self._log = log
        self._catalog = catalog
        self._pausing = pausing

    async def handle(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Take in events of the catalogue."""
        stages = await data_stages(connection)
        rows: list[dict[str, object]] = []
        # The last event of a file says whether it is there.
        there: dict[str, bool] = {}
        for event in events:
            match event.kind:
                case "catalog.file.created":
                    rows += _of_directory(stages, event)
                case "catalog.file.undeleted":
                    rows += _of_directory(stages, event)
                    there[event.subject_uid] = True
                case "catalog.file.updated":
                    # Its metadata may match by now; whoever has it already does not take it twice.
                    rows += _of_directory([one for one in stages if one[1].data.filter], event)
                case "catalog.dataset.files_added":
                    rows += _of_dataset(stages, event)
                case "catalog.dataset.closed":
                    await _list_again(connection, stages, event.subject)
                case "catalog.file.deleting" | "catalog.file.deleted":
                    there[event.subject_uid] = False
        await insert_many(connection, arrival, rows, skip_existing=True)
        lost = await lose(connection, [uid for uid, is_there in there.items() if not is_there])
        returned = [uid for uid, is_there in there.items() if is_there]
        found = await bring_back(connection, [row.id for row, _ in stages], returned)
        await self._log.append(connection, await items_changed(connection, [*lost, *found]))

    async def relist(self) -> None:
        """Look at everything again, because events were missed."""
        async with self._database.write() as connection:
            await _need_listing(connection, [row.id for row, _ in await data_stages(connection)])

    async def list_all(self) -> None:
        """List for the stages that need it: new ones, and those to which nothing more can come."""
        async with self._database.read() as connection:
            stages = await data_stages(connection)
            of_productions = {row.production_id for row, _ in stages}
            query = select(stage).where(in_values(stage.c.production_id, of_productions))
            siblings = (await connection.execute(query)).all()

        async def look(row: AnyRow, wanted: Stage) -> None:
            others = [one for one in siblings if one.production_id == row.production_id]
            ended = bool(wanted.after) and upstream_complete(wanted, complete_by_name(others))
            if ended or row.listing in (Listing.NEEDED, Listing.RUNNING):
                await self._list(row, wanted.data, ended=ended)

        listed = [one for one in stages if one[0].listing != Listing.FINAL and not takes_outputs(one[1])]
        await self._pausing.each(listed, look)

    async def _list(self, row: AnyRow, source: DataSource, *, ended: bool) -> None:
        """Note all files that lie there now; the last time if nothing can come after it."""
        await self._set_listing(row.id, Listing.RUNNING)
        closed = bool(source.dataset) and await self._is_closed(source.dataset)
        request = pb.ListFilesRequest(
            directory=source.directory, dataset=source.dataset, filter=source.filter, view=pb.FILE_VIEW_BASIC
        )
        try:
            async for answer in self._catalog.StreamFiles(request, timeout=_LISTING_SECONDS):
                files = [file for file in answer.files if _named(source, file.name)]
                rows = [row_of(row.id, file.name, file.uid, selected=True) for file in files]
                async with self._database.write() as connection:
                    await insert_many(connection, arrival, rows, skip_existing=True)
        except grpc.aio.AioRpcError as error:
            # The dataset is made by the first file that joins it.
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        # Not if an event said meanwhile that it has to be done again.
        await self._set_listing(row.id, Listing.FINAL if ended or closed else Listing.DONE, only=Listing.RUNNING)

    async def _set_listing(self, stage_id: int, listing: Listing, only: Listing | None = None) -> None:
        setting = update(stage).values(listing=listing).where(stage.c.id == stage_id)
        async with self._database.write() as connection:
            await connection.execute(setting if only is None else setting.where(stage.c.listing == only))

    async def _is_closed(self, name: str) -> bool:
        try:
            dataset = await self._catalog.GetDataset(pb.GetDatasetRequest(name=name))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return dataset.state == Dataset.STATE_CLOSED


def _of_directory(stages: Iterable[tuple[AnyRow, Stage]], event: Event) -> list[dict[str, object]]:
    file = File()
    event.resource.Unpack(file)
    return [
        row_of(row.id, file.name, file.uid)
        for row, wanted in stages
        if wanted.data.directory
        and not wanted.data.dataset
        and _below(wanted.data, file.name)
        and _named(wanted.data, file.name)
    ]


def _of_dataset(stages: Iterable[tuple[AnyRow, Stage]], event: Event) -> list[dict[str, object]]:
    change = pb.DatasetChange()
    event.resource.Unpack(change)
    return [
        row_of(row.id, name)
        for row, wanted in stages
        if wanted.data.dataset == change.dataset
        for name in change.added
        if _below(wanted.data, name) and _named(wanted.data, name)
    ]


async def _list_again(connection: AsyncConnection, stages: Iterable[tuple[AnyRow, Stage]], dataset: str) -> None:
    await _need_listing(connection, [row.id for row, wanted in stages if wanted.data.dataset == dataset])


async def _need_listing(connection: AsyncConnection, stage_ids: Sequence[int]) -> None:
    again = stage.c.listing.in_([Listing.DONE, Listing.RUNNING])
    await connection.execute(
        update(stage).values(listing=Listing.NEEDED).where(in_values(stage.c.id, stage_ids), again)
    )


async def forget(connection: AsyncConnection, stage_id: int, files: Sequence[str]) -> None:
    """Drop the notes of files that were looked at."""
    await connection.execute(delete(arrival).where(arrival.c.stage_id == stage_id, in_values(arrival.c.file, files)))
