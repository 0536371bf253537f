"""Datasets: make, read, fill, close."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.dataset_pb2 import Dataset
from khomas.catalog.errors import DatasetExists, DatasetMissing, FileMissing
from khomas.catalog.keys import VALUE, Keys
from khomas.catalog.membership import Candidate, Membership, candidates, changed, dataset_proto, new_row
from khomas.catalog.searching import value_fields
from khomas.catalog.tables import dataset, dataset_value, metadata_key
from khomas.catalog.values import set_value
from khomas.kit.boundary.call import current_owner
from khomas.kit.database import AnyRow, Database, Rows, in_values, insert_new
from khomas.kit.events import EventLog
from khomas.kit.filtering import Fields, fields, where
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.paging import Ordering, list_page

_ORDERING = Ordering({"name": dataset.c.name, "create_time": dataset.c.create_time}, dataset.c.id, "name")
_FIELDS = {
    "name": fields.text(dataset.c.name),
    "state": fields.enum(dataset.c.state, Dataset.State),
    "owner": fields.text(dataset.c.owner),
    "origin": fields.text(dataset.c.origin),
    "create_time": fields.time(dataset.c.create_time),
    "update_time": fields.time(dataset.c.update_time),
    "uid": fields.text(dataset.c.uid),
}


class Datasets:
    """The rpcs about datasets."""

    def __init__(self, database: Database, once: Once, log: EventLog, keys: Keys, membership: Membership) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._keys = keys
        self._membership = membership

    async def create(self, request: pb.CreateDatasetRequest) -> Dataset:
        """Make a dataset, with files if any are named."""
        owner = current_owner(request.owner)
        return await self._once(request, Dataset, lambda connection: self._create(connection, request, owner))

    async def _create(self, connection: AsyncConnection, request: pb.CreateDatasetRequest, owner: str) -> Dataset:
        wanted = new_row(new_uid(), request.dataset, owner, datetime.now(UTC))
        made = await insert_new(connection, dataset, [wanted], *dataset.c)
        if not made:
            raise DatasetExists(name=request.dataset.name)
        row = made[0]
        values = await self._keys.rows(connection, [(row.id, request.dataset.metadata)])
        self._database.insert_at_end(connection, Rows(dataset_value, ("dataset_id", *VALUE), values))
        await self._log.append(connection, [changed("created", row)])
        if request.files:
            files = _all(await candidates(connection, row.id, set(request.files)), request.files)
            row = await self._membership.change(connection, row, add=files)
        answer = dataset_proto(row)
        known = await self._keys.of(connection, set(request.dataset.metadata))
        for key, stored in zip(request.dataset.metadata, values, strict=True):
            set_value(answer.metadata[key], known[key].type, *stored[2:])
        return answer

    async def get(self, name: str) -> Dataset:
        """Read one."""
        async with self._database.read() as connection:
            return await self._read(connection, name)

    async def page(self, request: pb.ListDatasetsRequest) -> pb.ListDatasetsResponse:
        """List them."""
        async with self._database.read() as connection:
            keys = await self._keys.all(connection)
            known: Fields = {
                **_FIELDS,
                "metadata": value_fields(keys.values(), dataset_value, "dataset_id", dataset.c.id),
            }
            query = select(dataset).where(where(request.filter, known))
            page = await list_page(connection, query, request, _ORDERING)
            found = await _with_metadata(connection, page.rows)
        return pb.ListDatasetsResponse(datasets=found, next_page_token=page.next_page_token)

    async def update_files(self, request: pb.UpdateDatasetFilesRequest) -> Dataset:
        """Add and remove files."""
        return await self._once(request, Dataset, lambda connection: self._update_files(connection, request))

    async def _update_files(self, connection: AsyncConnection, request: pb.UpdateDatasetFilesRequest) -> Dataset:
        (row,) = await self._membership.locked(connection, [request.name])
        found = await candidates(connection, row.id, {*request.add, *request.remove})
        add = _all(found, request.add)
        remove = {name: found[name] for name in request.remove if name in found}
        changed_row = await self._membership.change(connection, row, add=add, remove=remove)
        return (await _with_metadata(connection, [changed_row]))[0]

    async def close(self, request: pb.CloseDatasetRequest) -> Dataset:
        """Close one; a closed one stays as it is."""
        return await self._once(request, Dataset, lambda connection: self._close(connection, request.name))

    async def _close(self, connection: AsyncConnection, name: str) -> Dataset:
        now = datetime.now(UTC)
        closing = (
            update(dataset)
            .values(state=Dataset.STATE_CLOSED, close_time=now, update_time=now, version=dataset.c.version + 1)
            .where(dataset.c.name == name, dataset.c.state == Dataset.STATE_OPEN)
            .returning(*dataset.c)
        )
        if row := (await connection.execute(closing)).one_or_none():
            await self._log.append(connection, [changed("closed", row)])
        return await self._read(connection, name)

    @staticmethod
    async def _read(connection: AsyncConnection, name: str) -> Dataset:
        row = (await connection.execute(select(dataset).where(dataset.c.name == name))).one_or_none()
        if row is None:
            raise DatasetMissing(name=name)
        return (await _with_metadata(connection, [row]))[0]


def _all(found: Mapping[str, Candidate], names: Sequence[str]) -> dict[str, Candidate]:
    if missing := sorted(set(names) - found.keys()):
        raise FileMissing(name=missing[0])
    return {name: found[name] for name in names}


async def _with_metadata(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[Dataset]:
    found = {row.id: dataset_proto(row) for row in rows}
    values = dataset_value.c
    query = (
        select(values.dataset_id, metadata_key.c.name, metadata_key.c.type, values.whole, values.number, values.text)
        .join(metadata_key, metadata_key.c.id == values.key_id)
        .where(in_values(values.dataset_id, found.keys()))
    )
    for row in await connection.execute(query):
        set_value(found[row.dataset_id].metadata[row.name], row.type, row.whole, row.number, row.text)
    return list(found.values())
