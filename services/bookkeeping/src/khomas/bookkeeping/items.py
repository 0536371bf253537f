"""Work items: how they are shown, listed and told of."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import Stage, WorkItem
from khomas.api.common.v1 import explanation_pb2
from khomas.bookkeeping.errors import StageMissing, WorkItemMissing
from khomas.bookkeeping.item_reasons import explanation
from khomas.bookkeeping.productions import found
from khomas.bookkeeping.tables import item_file, production, stage, work_item
from khomas.kit.database import AnyRow, Database, in_values
from khomas.kit.events import NewEvent
from khomas.kit.filtering import fields, where
from khomas.kit.paging import Ordering, list_page

_DEFAULT_PAGE = 1000
_MAX_PAGE = 10_000
_ORDERING = Ordering({"create_time": work_item.c.create_time}, work_item.c.id, "create_time")
_FIELDS = {
    "state": fields.enum(work_item.c.state, WorkItem.State),
    "group": fields.text(work_item.c.group_value),
    "job": fields.text(work_item.c.job),
    "tries": fields.integer(work_item.c.tries),
}


class Items:
    """Lists work items."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, request: pb.ListWorkItemsRequest) -> pb.ListWorkItemsResponse:
        """List them, oldest first."""
        async with self._database.read() as connection:
            row = await found(connection, request.production)
            query = select(work_item).join(stage).where(stage.c.production_id == row.id)
            if request.stage:
                await _check_stage(connection, row, request.stage)
                query = query.where(stage.c.name == request.stage)
            query = query.where(where(request.filter, _FIELDS))
            page = await list_page(
                connection, query, request, _ORDERING, default_size=_DEFAULT_PAGE, max_size=_MAX_PAGE
            )
            items = await item_messages(connection, page.rows)
        return pb.ListWorkItemsResponse(work_items=items, next_page_token=page.next_page_token)

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Say why one is not processed."""
        query = (
            select(*work_item.c, stage.c.wanted, production.c.state.label("production_state"))
            .join(stage, stage.c.id == work_item.c.stage_id)
            .join(production, production.c.id == stage.c.production_id)
            .where(work_item.c.uid == name.rpartition("/")[2])
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            items = await item_messages(connection, rows)
        if not items or items[0].name != name:
            raise WorkItemMissing(name=name)
        return explanation(items[0], Stage.FromString(rows[0].wanted), rows[0].production_state)


async def _check_stage(connection: AsyncConnection, row: AnyRow, name: str) -> None:
    query = select(stage.c.id).where(stage.c.production_id == row.id, stage.c.name == name)
    if (await connection.execute(query)).one_or_none() is None:
        raise StageMissing(production=row.name, stage=name)


async def item_messages(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[WorkItem]:
    """Return the work items of these rows, with two statements."""
    ids = [row.id for row in rows]
    named = (
        select(stage.c.id, stage.c.name, production.c.name.label("production"))
        .join(production)
        .where(in_values(stage.c.id, {row.stage_id for row in rows}))
    )
    prefixes = {row.id: f"{row.production}/stages/{row.name}" for row in await connection.execute(named)}
    files: dict[int, list[str]] = {}
    for row in await connection.execute(files_of(ids)):
        files.setdefault(row.item_id, []).append(row.file)
    return [
        WorkItem(
            name=f"{prefixes[row.stage_id]}/items/{row.uid}",
            files=files.get(row.id, []),
            group=row.group_value,
            state=row.state,
            job=row.job,
            tries=row.tries,
            message=row.message,
            create_time=row.create_time,
            update_time=row.update_time,
        )
        for row in rows
    ]


def new_row(
    uid: str, stage_id: int, group: str, file_count: int, state: WorkItem.State.ValueType, message: str, now: datetime
) -> dict[str, object]:
    """Return the row of a work item that no job has had."""
    return {
        "uid": uid,
        "stage_id": stage_id,
        "group_value": group,
        "file_count": file_count,
        "state": state,
        "job": "",
        "tries": 0,
        "message": message,
        "create_time": now,
        "update_time": now,
        "growth_time": now,
    }


def files_of(item_ids: Sequence[int]) -> Select[int, str]:
    """Return the query for the files of work items, in order."""
    return (
        select(item_file.c.item_id, item_file.c.file)
        .where(in_values(item_file.c.item_id, item_ids))
        .order_by(item_file.c.item_id, item_file.c.file)
    )


async def items_changed(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[NewEvent]:
    """Return the events that tell of changed work items."""
    if not rows:
        return []
    messages = await item_messages(connection, rows)
    return [
        NewEvent("bookkeeping.item.changed", one.name, row.uid, "", one)
        for row, one in zip(rows, messages, strict=True)
    ]
