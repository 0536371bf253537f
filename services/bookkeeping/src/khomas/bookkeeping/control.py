"""What people do with a production that exists: change, pause, resume, cancel, flush."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.production_pb2 import Production, Stage, WorkItem
from khomas.bookkeeping.errors import ProductionState, StageMissing
from khomas.bookkeeping.items import items_changed
from khomas.bookkeeping.productions import found
from khomas.bookkeeping.progress import changed, shown
from khomas.bookkeeping.tables import production, stage, work_item
from khomas.bookkeeping.targets import raise_targets
from khomas.kit.database import AnyRow
from khomas.kit.errors import EtagMismatch, FieldInvalid
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once

_ACTIVE, _PAUSED = Production.STATE_ACTIVE, Production.STATE_PAUSED
_CANCELLED, _COMPLETED = Production.STATE_CANCELLED, Production.STATE_COMPLETED
_FIELDS = ("description", "priority", "stages.requested_events")
_UNFINISHED = (WorkItem.STATE_GROUPED, WorkItem.STATE_READY, WorkItem.STATE_ASSIGNED, WorkItem.STATE_MAX_TRIES)


class Control:
    """The rpcs that change productions."""

    def __init__(self, once: Once, log: EventLog) -> None:
        self._once = once
        self._log = log

    async def update(self, request: pb.UpdateProductionRequest) -> Production:
        """Change what may be changed."""
        for path in request.update_mask.paths:
            if path not in _FIELDS:
                raise FieldInvalid.of("update_mask", f"{path} cannot be changed; {', '.join(_FIELDS)} can")
        return await self._once(request, Production, lambda connection: self._update(connection, request))

    async def _update(self, connection: AsyncConnection, request: pb.UpdateProductionRequest) -> Production:
        wanted, paths = request.production, request.update_mask.paths
        row = await _in_state(connection, wanted.name, _ACTIVE, _PAUSED, _COMPLETED)
        if wanted.etag and wanted.etag != str(row.version):
            raise EtagMismatch(name=row.name)
        values: dict[str, Any] = {key: getattr(wanted, key) for key in ("description", "priority") if key in paths}
        if _FIELDS[-1] in paths and await raise_targets(connection, row.id, wanted.stages):
            values |= {"state": _ACTIVE, "end_time": None} if row.state == _COMPLETED else {}
        return await self._changed(connection, row.id, values)

    async def pause(self, request: pb.PauseProductionRequest) -> Production:
        """Make no new jobs."""
        return await self._once(request, Production, lambda connection: self._pause(connection, request.name))

    async def _pause(self, connection: AsyncConnection, name: str) -> Production:
        row = await _in_state(connection, name, _ACTIVE, _PAUSED)
        if row.state == _PAUSED:
            return (await shown(connection, [row]))[0]
        return await self._changed(connection, row.id, {"state": _PAUSED, "message": "Paused by a person."})

    async def resume(self, request: pb.ResumeProductionRequest) -> Production:
        """Go on, with new tries for what failed too often."""
        return await self._once(request, Production, lambda connection: self._resume(connection, request.name))

    async def _resume(self, connection: AsyncConnection, name: str) -> Production:
        row = await _in_state(connection, name, _ACTIVE, _PAUSED)
        if row.state == _ACTIVE:
            return (await shown(connection, [row]))[0]
        await connection.execute(update(stage).values(outcomes="").where(stage.c.production_id == row.id))
        again = {"state": WorkItem.STATE_READY, "tries": 0, "update_time": datetime.now(UTC)}
        await self._change_items(connection, row.id, [WorkItem.STATE_MAX_TRIES], again)
        return await self._changed(connection, row.id, {"state": _ACTIVE, "message": ""})

    async def cancel(self, request: pb.CancelProductionRequest) -> Production:
        """Give it up; its jobs are cancelled in the background."""
        return await self._once(request, Production, lambda connection: self._cancel(connection, request))

    async def _cancel(self, connection: AsyncConnection, request: pb.CancelProductionRequest) -> Production:
        row = await _in_state(connection, request.name, _ACTIVE, _PAUSED, _CANCELLED)
        if row.state == _CANCELLED:
            return (await shown(connection, [row]))[0]
        now = datetime.now(UTC)
        skipped = {"state": WorkItem.STATE_SKIPPED, "message": "The production was cancelled.", "update_time": now}
        await self._change_items(connection, row.id, _UNFINISHED, skipped)
        values = {"state": _CANCELLED, "message": request.reason, "end_time": now, "cancelling": True}
        return await self._changed(connection, row.id, values)

    async def _change_items(
        self, connection: AsyncConnection, production_id: int, states: Sequence[int], values: dict[str, Any]
    ) -> None:
        stages = select(stage.c.id).where(stage.c.production_id == production_id)
        changing = update(work_item).values(**values).returning(*work_item.c)
        changing = changing.where(work_item.c.stage_id.in_(stages), work_item.c.state.in_(states))
        rows = (await connection.execute(changing)).all()
        await self._log.append(connection, await items_changed(connection, rows))

    async def flush(self, request: pb.FlushStageRequest) -> Production:
        """Submit what is there, and end the stage with it."""
        return await self._once(request, Production, lambda connection: self._flush(connection, request))

    async def _flush(self, connection: AsyncConnection, request: pb.FlushStageRequest) -> Production:
        row = await _in_state(connection, request.name, _ACTIVE, _PAUSED)
        query = select(stage).where(stage.c.production_id == row.id, stage.c.name == request.stage)
        one = (await connection.execute(query)).one_or_none()
        if one is None:
            raise StageMissing(production=row.name, stage=request.stage)
        if not Stage.FromString(one.wanted).HasField("data"):
            raise FieldInvalid.of("stage", f"{request.stage} has no files to flush; name a data stage")
        await connection.execute(update(stage).values(flushed=True).where(stage.c.id == one.id))
        return await self._changed(connection, row.id, {})

    async def _changed(self, connection: AsyncConnection, production_id: int, values: dict[str, Any]) -> Production:
        changing = (
            update(production)
            .values(**values, update_time=datetime.now(UTC), version=production.c.version + 1)
            .where(production.c.id == production_id)
            .returning(*production.c)
        )
        rows = (await connection.execute(changing)).all()
        await self._log.append(connection, await changed(connection, rows))
        return (await shown(connection, rows))[0]


async def _in_state(connection: AsyncConnection, name: str, *states: int) -> AnyRow:
    """Lock a production that is in one of these states."""
    row = await found(connection, name, lock=True)
    if row.state not in states:
        state = Production.State.Name(row.state).removeprefix("STATE_")
        raise ProductionState(name=name, state=state)
    return row
