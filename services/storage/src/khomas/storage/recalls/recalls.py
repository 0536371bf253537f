"""Recalls as callers want, see and cancel them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, case, func, literal, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import recall_pb2
from khomas.api.storage.v1 import recall_service_pb2 as pb
from khomas.kit.auth.principal import allows
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, in_values
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Once
from khomas.kit.leases import FREE
from khomas.kit.paging import Ordering, list_page
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements, known
from khomas.storage.recalls.errors import RecallNotFound
from khomas.storage.recalls.explaining import explanation
from khomas.storage.recalls.messages import ACTIVE, PREFIX, State, recall_event, recall_proto
from khomas.storage.recalls.tables import recall
from khomas.storage.recalls.wanting import Wanted, on_tape, stored
from khomas.storage.rows import mapping, mappings

_FIELDS: Final = {
    "state": fields.enum(recall.c.state, recall_pb2.Recall.State),
    "reason": fields.enum(recall.c.reason, recall_pb2.RecallReason),
    "file": fields.text(recall.c.file),
    "storage_element": fields.text(recall.c.storage_element),
    "request": fields.text(recall.c.native_id),
    "origin": fields.text(recall.c.origin),
    "owner": fields.text(recall.c.owner),
    "create_time": fields.time(recall.c.create_time),
    "uid": fields.text(recall.c.uid),
}
_ORDER: Final = Ordering(fields={"create_time": recall.c.create_time}, unique=recall.c.uid, default="create_time desc")
_MOST: Final = 10_000


class Recalls:
    """Takes wishes for files on disk and tells what became of them."""

    def __init__(
        self, database: Database, once: Once, log: EventLog, elements: Elements, catalog: Catalog, lifetime: timedelta
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements
        self._catalog = catalog
        self._lifetime = lifetime

    async def create(self, request: pb.BatchCreateRecallsRequest) -> pb.BatchCreateRecallsResponse:
        """Want files on disk; what is wanted already gets more time."""
        elements = await self._elements.all()
        if request.storage_element:
            known(elements, request.storage_element)
        judged = await self._judged(request, elements)
        lifetime = request.pin_lifetime.ToTimedelta() if request.HasField("pin_lifetime") else self._lifetime
        wanted = {one.key: one for one in judged if isinstance(one, Wanted)}

        async def work(connection: AsyncConnection) -> pb.BatchCreateRecallsResponse:
            owner = current_principal().subject
            rows = await stored(connection, self._log, list(wanted.values()), request.origin, owner, lifetime)
            return pb.BatchCreateRecallsResponse(
                results=[
                    pb.RecallResult(recall=recall_proto(rows[one.key]))
                    if isinstance(one, Wanted)
                    else pb.RecallResult(error=one)
                    for one in judged
                ]
            )

        return await self._once(request, pb.BatchCreateRecallsResponse, work)

    async def get(self, name: str) -> recall_pb2.Recall:
        """Read one."""
        return recall_proto(await self._read(name))

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Tell why one waits or failed."""
        row = await self._read(name)
        before = select(func.count()).where(
            recall.c.storage_element == row["storage_element"],
            recall.c.state == State.STATE_REQUESTED,
            recall.c.state_time < row["state_time"],
        )
        async with self._database.read() as connection:
            number = int((await connection.execute(before)).scalar_one())
        return explanation(recall_proto(row), row["due_time"], number)

    async def page(self, request: pb.ListRecallsRequest) -> pb.ListRecallsResponse:
        """Read a page."""
        query = select(recall).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return pb.ListRecallsResponse(
            recalls=[recall_proto(mapping(row)) for row in page.rows], next_page_token=page.next_page_token
        )

    async def cancel(self, request: pb.BatchCancelRecallsRequest) -> pb.BatchCancelRecallsResponse:
        """Take recalls of the caller back."""
        uids = {name.removeprefix(PREFIX) for name in request.names}
        which = (in_values(recall.c.uid, uids), _mine())
        statement = update(recall).where(*which, in_values(recall.c.state, ACTIVE)).values(_ended()).returning(recall)

        async def work(connection: AsyncConnection) -> pb.BatchCancelRecallsResponse:
            found = set((await connection.scalars(select(recall.c.uid).where(*which))).all())
            if missing := uids - found:
                raise RecallNotFound(name=PREFIX + min(missing))
            rows = mappings(await connection.execute(statement))
            await self._log.append(connection, [recall_event(row) for row in rows])
            return pb.BatchCancelRecallsResponse(cancelled=len(rows), already_final=len(uids) - len(rows))

        return await self._once(request, pb.BatchCancelRecallsResponse, work)

    # --------------------------------------------------------------------------------------------------- parts

    async def _judged(
        self, request: pb.BatchCreateRecallsRequest, elements: Mapping[str, Element]
    ) -> list[Wanted | Any]:
        if bool(request.files) == bool(request.dataset):
            raise FieldInvalid.of("files", "name either files or a dataset")
        if not request.dataset:
            results = await self._catalog.files(request.files)
            return [
                one.error if one.HasField("error") else on_tape(one.file, elements, request.storage_element)
                for one in results
            ]
        members = [on_tape(one, elements, request.storage_element) for one in await self._members(request.dataset)]
        return [one for one in members if isinstance(one, Wanted)]

    async def _members(self, dataset: str) -> Sequence[file_pb2.File]:
        request = catalog_pb.ListFilesRequest(dataset=dataset, page_size=_MOST, view=catalog_pb.FILE_VIEW_REPLICAS)
        answer = await self._catalog.list_files(request)
        if answer.next_page_token:
            raise FieldInvalid.of("dataset", f"it has more than {_MOST} files; name them in parts")
        return answer.files

    async def _read(self, name: str) -> Mapping[str, Any]:
        query = select(recall).where(recall.c.uid == name.removeprefix(PREFIX))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise RecallNotFound(name=name)
        return mapping(row)


def _ended() -> dict[str, Any]:
    """Return what an update sets that takes active recalls back."""
    now = datetime.now(UTC)
    online = recall.c.state == State.STATE_ONLINE
    asked = recall.c.request_uid != ""
    return {
        **FREE,
        # Whoever works on it learns that the result is not wanted any more.
        "lease_epoch": recall.c.lease_epoch + 1,
        "state": case((online, int(State.STATE_RELEASED)), else_=int(State.STATE_CANCELLED)),
        "reason": recall_pb2.RECALL_REASON_CANCELLED,
        "message": "",
        "owed": case((online, "release"), (asked, "cancel"), else_=""),
        "due_time": case((online | asked, literal(now, recall.c.due_time.type)), else_=None),
        "active_key": None,
        "state_time": now,
        "end_time": now,
    }


def _mine() -> ColumnElement[bool]:
    """Return the condition that a recall is the caller's; an administrator sees all."""
    principal = current_principal()
    return true() if allows(principal, "admin") else recall.c.owner == principal.subject
