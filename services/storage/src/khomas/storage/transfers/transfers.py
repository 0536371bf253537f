"""Transfers as callers want, see and cancel them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import ColumnElement, Row, delete, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.common.v1 import explanation_pb2
from khomas.api.storage.v1 import storage_service_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.auth.principal import allows
from khomas.kit.boundary.call import current_principal
from khomas.kit.boundary.status import status_of
from khomas.kit.database import Database, in_values, insert_new
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import fields, where
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uids
from khomas.kit.leases import FREE, lock
from khomas.kit.paging import Ordering, list_page
from khomas.storage.catalog import Catalog
from khomas.storage.deletions.taking_back import doubtful, of, take_back
from khomas.storage.elements.elements import Element, Elements, known
from khomas.storage.errors import NoReplica, StorageElementNotFound, StorageElementReadOnly, TransferNotFound
from khomas.storage.links.choosing import nearest
from khomas.storage.links.measures import Measure, Measures
from khomas.storage.rows import mapping, mappings
from khomas.storage.tables import transfer, transfer_attempt
from khomas.storage.transfers.explaining import explanation
from khomas.storage.transfers.standing import Standing, standing
from khomas.storage.transfers.turns import deal, ends, lane

PREFIX = "transfers/"
_QUEUED: Final[Mapping[str, Any]] = {
    "state": pb.Transfer.STATE_WAITING,
    "reason": pb.TRANSFER_REASON_QUEUED,
    "message": "",
    "end_time": None,
}
_PRUNED = 5000
ACTIVE = (pb.Transfer.STATE_WAITING, pb.Transfer.STATE_RUNNING)
_FIELDS = {
    "state": fields.enum(transfer.c.state, pb.Transfer.State),
    "reason": fields.enum(transfer.c.reason, pb.TransferReason),
    "file": fields.text(transfer.c.file),
    "destination": fields.text(transfer.c.destination),
    "origin": fields.text(transfer.c.origin),
    "owner": fields.text(transfer.c.owner),
    "share": fields.text(transfer.c.share),
    "create_time": fields.time(transfer.c.create_time),
    "uid": fields.text(transfer.c.uid),
}
_ORDER = Ordering(
    fields={"create_time": transfer.c.create_time, "priority": transfer.c.priority},
    unique=transfer.c.uid,
    default="create_time",
)
Results = storage_service_pb2.BatchCreateTransfersResponse


class Transfers:
    """Takes wishes for copies and tells what became of them."""

    def __init__(
        self,
        database: Database,
        once: Once,
        log: EventLog,
        elements: Elements,
        catalog: Catalog,
        measures: Measures,
        wake: Callable[[], None],
        *,
        shares: Mapping[str, float],
        retention: timedelta,
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._elements = elements
        self._catalog = catalog
        self._measures = measures
        self._wake = wake
        self._shares = shares
        self._retention = retention

    async def create(self, request: storage_service_pb2.BatchCreateTransfersRequest) -> Results:
        """Queue copies; what is wanted already is not wanted twice."""
        elements = await self._elements.all()
        files = await self._catalog.files([one.file for one in request.transfers])
        measures = self._measures.known
        judged = [_row(one, file, elements, measures) for one, file in zip(request.transfers, files, strict=True)]

        async def work(connection: AsyncConnection) -> Results:
            now = await standing(connection, [row for row in judged if isinstance(row, dict)], ACTIVE)
            wanted = await self._wanted(connection, {file for file, _ in now.wanted}) if now.wanted else {}
            rows: list[dict[str, Any]] = []
            again = await self._once_more(connection, judged, elements, now)
            for one, row in zip(request.transfers, again, strict=True):
                if isinstance(row, dict) and (one.file, one.destination) not in wanted:
                    rows.append(row)
                    wanted[one.file, one.destination] = transfer_proto(row)
            await deal(connection, [row for row in rows if row["state"] in ACTIVE], self._shares)
            others = await self._insert(connection, rows)
            new = [row for row in rows if (row["file"], row["destination"]) not in others]
            await self._log.append(connection, [transfer_event(row) for row in new])
            self._database.after_commit(connection, self._wake)
            wanted |= others
            return Results(
                results=[
                    storage_service_pb2.TransferResult(transfer=wanted[one.file, one.destination])
                    if isinstance(row, dict)
                    else storage_service_pb2.TransferResult(error=row)
                    for one, row in zip(request.transfers, again, strict=True)
                ]
            )

        return await self._once(request, Results, work)

    async def get(self, name: str) -> pb.Transfer:
        """Read one with its attempts."""
        row, attempts = await self._read(name)
        message = transfer_proto(row)
        message.attempts.extend(map(attempt_proto, attempts))
        return message

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Tell why one waits or failed."""
        row, attempts = await self._read(name)
        return explanation(transfer_proto(row), row["state_time"], [attempt_proto(one) for one in attempts])

    async def page(
        self, request: storage_service_pb2.ListTransfersRequest
    ) -> storage_service_pb2.ListTransfersResponse:
        """Read a page."""
        query = select(transfer).where(where(request.filter, _FIELDS))
        if request.files:
            query = query.where(in_values(transfer.c.file, request.files))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _ORDER)
        return storage_service_pb2.ListTransfersResponse(
            transfers=[transfer_proto(mapping(row)) for row in page.rows],
            next_page_token=page.next_page_token,
        )

    async def cancel(
        self, request: storage_service_pb2.BatchCancelTransfersRequest
    ) -> storage_service_pb2.BatchCancelTransfersResponse:
        """Take transfers of the caller back."""
        uids = {name.removeprefix(PREFIX) for name in request.names}
        now = datetime.now(UTC)
        ended = {"state": pb.Transfer.STATE_CANCELLED, "reason": pb.TRANSFER_REASON_CANCELLED, "message": ""}
        # The epoch tells who works on it that the result is not wanted any more.
        values = {**ended, **FREE, "lease_epoch": transfer.c.lease_epoch + 1, "end_time": now, "state_time": now}
        which = (in_values(transfer.c.uid, uids), _mine())
        statement = update(transfer).where(*which, transfer.c.state.in_(ACTIVE)).values(values).returning(transfer)

        async def work(connection: AsyncConnection) -> storage_service_pb2.BatchCancelTransfersResponse:
            found = set((await connection.scalars(select(transfer.c.uid).where(*which))).all())
            if missing := uids - found:
                raise TransferNotFound(name=PREFIX + min(missing))
            await lock(connection, transfer, uids)
            rows = mappings(await connection.execute(statement))
            await self._log.append(connection, [transfer_event(row) for row in rows])
            return storage_service_pb2.BatchCancelTransfersResponse(
                cancelled=len(rows), already_final=len(uids) - len(rows)
            )

        return await self._once(request, storage_service_pb2.BatchCancelTransfersResponse, work)

    async def prune(self) -> None:
        """Forget transfers that ended long ago, some thousand at a time."""
        before = datetime.now(UTC) - self._retention
        old = select(transfer.c.uid).where(transfer.c.end_time < before).limit(_PRUNED)
        while True:
            async with self._database.write() as connection:
                uids = (
                    await connection.scalars(delete(transfer).where(transfer.c.uid.in_(old)).returning(transfer.c.uid))
                ).all()
                await connection.execute(
                    delete(transfer_attempt).where(in_values(transfer_attempt.c.transfer_uid, uids))
                )
            if len(uids) < _PRUNED:
                return

    async def _once_more(
        self, connection: AsyncConnection, judged: Sequence[Any], elements: Mapping[str, Element], now: Standing
    ) -> list[Any]:
        """Judge rows by what may have changed since: StorageElements are forgotten, and replicas deleted."""
        unsure: Collection[tuple[str, str]] = now.doubtful
        if unsure:
            again = {pair for pair in unsure if elements[pair[1]].takes_files}
            await take_back(connection, self._log, "It is wanted there again.", *of(again))
            unsure = await doubtful(connection, unsure)
        nearest = sorted(elements.keys() - now.gone)
        return [_judged_again(row, now.gone, unsure, nearest) if isinstance(row, dict) else row for row in judged]

    async def _insert(
        self, connection: AsyncConnection, rows: Sequence[dict[str, Any]]
    ) -> dict[tuple[str, str], pb.Transfer]:
        """Insert new transfers; return, instead of those, what somebody else has begun to want at the same moment."""
        others: dict[tuple[str, str], pb.Transfer] = {}
        # In one order: two that wait for each other's would wait for ever.
        left = sorted(rows, key=lambda row: (row["file"], row["destination"]))
        while left:
            there = {row.uid for row in await insert_new(connection, transfer, left, transfer.c.uid)}
            left = [row for row in left if row["uid"] not in there]
            found = await self._wanted(connection, {row["file"] for row in left}) if left else {}
            others |= {key: found[key] for row in left if (key := (row["file"], row["destination"])) in found}
            # What is not there any more has ended since, and can be wanted again.
            left = [row for row in left if (row["file"], row["destination"]) not in others]
        return others

    async def _wanted(self, connection: AsyncConnection, names: Iterable[str]) -> dict[tuple[str, str], pb.Transfer]:
        query = select(transfer).where(in_values(transfer.c.file, list(names)), transfer.c.state.in_(ACTIVE))
        rows = (await connection.execute(query)).all()
        return {(row.file, row.destination): transfer_proto(mapping(row)) for row in rows}

    async def _read(self, name: str) -> tuple[Mapping[str, Any], Sequence[Row[Any]]]:
        uid = name.removeprefix(PREFIX)
        attempts = select(transfer_attempt).where(transfer_attempt.c.transfer_uid == uid)
        async with self._database.read() as connection:
            row = (await connection.execute(select(transfer).where(transfer.c.uid == uid))).one_or_none()
            if row is None:
                raise TransferNotFound(name=name)
            tries = (await connection.execute(attempts.order_by(transfer_attempt.c.number))).all()
        return mapping(row), tries


def transfer_proto(row: Mapping[str, Any]) -> pb.Transfer:
    """Return a transfer without its attempts."""
    message = pb.Transfer(
        name=PREFIX + row["uid"],
        file=row["file"],
        destination=row["destination"],
        sources=sources_of(row),
        priority=row["priority"],
        max_attempts=row["max_attempts"],
        origin=row["origin"],
        owner=row["owner"],
        state=row["state"],
        reason=row["reason"],
        message=row["message"],
        size_bytes=row["size_bytes"],
        share=row["share"],
        source=ends(row["lane"])[0],
        moved_bytes=row["moved_bytes"] if row["state"] == pb.Transfer.STATE_RUNNING else 0,
    )
    if row["deadline"] is not None:
        message.deadline.FromDatetime(row["deadline"])
    message.create_time.FromDatetime(row["create_time"])
    if row["reason"] == pb.TRANSFER_REASON_BACKOFF:
        message.next_attempt_time.FromDatetime(row["next_attempt_time"])
    if row["end_time"] is not None:
        message.end_time.FromDatetime(row["end_time"])
    return message


def sources_of(row: Mapping[str, Any]) -> list[str]:
    """Return the StorageElements that a transfer may read from; empty = any."""
    return [name for name in row["sources"].split(",") if name]


def attempt_proto(row: Row[Any]) -> pb.TransferAttempt:
    """Return one try."""
    message = pb.TransferAttempt(
        number=row.number,
        source=row.source,
        reason=row.reason,
        message=row.message,
        bytes=row.bytes,
        bottleneck=row.bottleneck,
        streamed_bytes=row.streamed_bytes,
        executor=row.executor,
    )
    message.start_time.FromDatetime(row.start_time)
    message.elapsed.CopyFrom(_duration(row.elapsed_seconds))
    message.queued.CopyFrom(_duration(row.queued_seconds))
    return message


def _duration(seconds: float) -> Duration:
    return Duration(nanos=int(seconds % 1 * 1e9), seconds=int(seconds))


def transfer_event(row: Mapping[str, Any]) -> NewEvent:
    """Tell how a transfer is now."""
    message = transfer_proto(row)
    return NewEvent("storage.transfer.changed", message.name, row["uid"], row["origin"], message)


def _row(
    one: pb.Transfer,
    result: catalog_pb.FileResult,
    elements: Mapping[str, Element],
    measures: Mapping[tuple[str, str], Measure],
) -> Any:
    """Return the new transfer as a row of the table, or the status that says why there is none."""
    if result.HasField("error"):
        return result.error
    try:
        destination = known(elements, one.destination)
        for source in one.sources:
            known(elements, source)
        there = any(replica.storage_element == destination.id for replica in _readable(result.file))
        if not there and not destination.takes_files:
            raise StorageElementReadOnly(storage_element=destination.id)
        if not _readable(result.file):
            raise NoReplica(file=one.file)
    except DomainError as error:
        return status_of(error)
    best = nearest(result.file, elements, measures, destination=one.destination)
    source = next((element.id for element, _ in best if not one.sources or element.id in one.sources), "")
    return _new(one, result.file, source, there=there)


def _judged_again(
    row: dict[str, Any], gone: Collection[str], unsure: Collection[tuple[str, str]], nearest: Sequence[str]
) -> Any:
    name = row["destination"]
    if name in gone:
        return status_of(StorageElementNotFound(storage_element=name, nearest=nearest))
    # Whether its replica is there is found out when its turn has come.
    return {**row, **_QUEUED} if (row["file_uid"], name) in unsure else row


def _readable(file: file_pb2.File) -> list[file_pb2.Replica]:
    return [replica for replica in file.replicas if replica.state == file_pb2.Replica.STATE_AVAILABLE]


def _new(one: pb.Transfer, file: file_pb2.File, source: str, *, there: bool) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "uid": new_uids(1)[0],
        "file": one.file,
        "file_uid": file.uid,
        "destination": one.destination,
        "sources": ",".join(one.sources),
        "priority": one.priority,
        "max_attempts": one.max_attempts,
        "origin": one.origin,
        "owner": current_principal().subject,
        "size_bytes": file.size_bytes,
        "attempt": 0,
        "path": "",
        "next_attempt_time": now,
        "create_time": now,
        "state_time": now,
        "deadline": one.deadline.ToDatetime(UTC) if one.HasField("deadline") else None,
        "share": one.share or current_principal().subject,
        "lane": lane(source, one.destination),
        "turn": 0.0,
        "moved_bytes": 0,
        **(_there(now) if there else _QUEUED),
    }


def _there(now: datetime) -> Mapping[str, Any]:
    said = {"reason": pb.TRANSFER_REASON_UNSPECIFIED, "message": "The file has a replica there already."}
    return {"state": pb.Transfer.STATE_SUCCEEDED, **said, "end_time": now}


def _mine() -> ColumnElement[bool]:
    principal = current_principal()
    return true() if allows(principal, "admin") else transfer.c.owner == principal.subject
