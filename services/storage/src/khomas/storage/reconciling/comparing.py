"""Does comparisons: lists both sides into the database, compares, looks again, writes down what is so."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from sqlalchemy import select, update

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import incident_pb2
from khomas.api.storage.v1 import reconciliation_pb2 as pb
from khomas.kit.database import Database
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.leases import FREE, claim, renew
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Element, Elements, Protocols, known
from khomas.storage.protocols.interface import Entry, ProtocolFault
from khomas.storage.reconciling.listing import files_of
from khomas.storage.reconciling.looking import Looking
from khomas.storage.reconciling.policies import Policies
from khomas.storage.reconciling.recording import Recording
from khomas.storage.reconciling.runs import GOING, PREFIX, UNFINISHED, counted, findings, run_event
from khomas.storage.reconciling.sides import Sides, Totals
from khomas.storage.reconciling.tables import expected_replica, found_file, reconciliation
from khomas.storage.rows import mappings

log = logging.getLogger(__name__)

Run = pb.Reconciliation
_TRIES: Final = 3
# Fewer files may be lost without asking.
_FEW: Final = 10
_LISTED_SECONDS: Final = 3600.0
_QUICK = (
    *(incident_pb2.Incident.KIND_LOST, incident_pb2.Incident.KIND_DARK),
    *(incident_pb2.Incident.KIND_SIZE, incident_pb2.Incident.KIND_SUSPECT),
)
_THOROUGH = (*_QUICK, incident_pb2.Incident.KIND_CHECKSUM, incident_pb2.Incident.KIND_UNREADABLE)


class _Lost(Exception):
    """Somebody has cancelled the comparison, or taken it over."""


@dataclass(frozen=True, slots=True)
class _Going:
    """A comparison that this process works on."""

    row: Mapping[str, Any]
    element: Element
    max_lost_percent: float
    sides: Sides
    start_time: datetime

    @property
    def name(self) -> str:
        return PREFIX + str(self.row["uid"])


class Comparing:
    """The executor of comparisons, one after the other."""

    def __init__(
        self,
        database: Database,
        event_log: EventLog,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        policies: Policies,
        looking: Looking,
        recording: Recording,
        *,
        owner: str,
        lease: timedelta,
        pause: timedelta,
    ) -> None:
        self._database = database
        self._log = event_log
        self._catalog = catalog
        self._elements = elements
        self._protocols = protocols
        self._policies = policies
        self._looking = looking
        self._recording = recording
        self._owner = owner
        self._lease = lease
        self._pause = pause

    async def work(self) -> None:
        """Do all that wait."""
        while (row := await self._claim()) is not None:
            try:
                async with asyncio.TaskGroup() as group:
                    renewing = group.create_task(self._renewing(row))
                    await self._compare(row)
                    renewing.cancel()
            except* _Lost:
                log.info("reconciliation.lost", extra={"reconciliation": row["uid"]})

    async def tidy(self) -> None:
        """Forget both sides of comparisons that were taken back."""
        going = select(reconciliation.c.uid).where(reconciliation.c.state.in_(UNFINISHED))
        async with self._database.read() as connection:
            kept = set((await connection.scalars(going)).all())
            runs = select(expected_replica.c.run_uid).union(select(found_file.c.run_uid))
            left = set((await connection.scalars(runs)).all()) - kept
        for run in left:
            await Sides(self._database, run).clear()

    async def _claim(self) -> Mapping[str, Any] | None:
        now = datetime.now(UTC)
        due = (
            select(reconciliation.c.uid)
            .where(reconciliation.c.state.in_(GOING), reconciliation.c.next_attempt_time <= now)
            .order_by(reconciliation.c.next_attempt_time)
            .limit(1)
        )
        async with self._database.read() as connection:
            if (await connection.execute(due)).first() is None:
                return None
        async with self._database.write() as connection:
            rows = await claim(connection, reconciliation, due, owner=self._owner, now=now, until=now + self._lease)
        return dict(rows[0]._mapping) if rows else None  # noqa: SLF001  SQLAlchemy's public name

    async def _renewing(self, row: Mapping[str, Any]) -> None:
        epochs = {row["uid"]: row["lease_epoch"]}
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            async with self._database.write() as connection:
                if not await renew(connection, reconciliation, epochs, until=datetime.now(UTC) + self._lease):
                    raise _Lost

    async def _compare(self, row: Mapping[str, Any]) -> None:
        sides = Sides(self._database, row["uid"])
        try:
            element = known(await self._elements.all(), row["storage_element"])
            policy = (await self._policies.all())[element.id]
            percent = row["max_lost_percent"] or policy.max_lost_percent
            await self._phases(_Going(row, element, percent, sides, row["create_time"]))
        except (ProtocolFault, DomainError) as error:
            await self._failed(row, error.message)
        except grpc.aio.AioRpcError as error:
            await self._failed(row, f"the catalogue does not answer: {error.details()}")

    async def _phases(self, run: _Going) -> None:
        phase = run.row["phase"]
        if phase <= Run.PHASE_STORAGE:
            totals = await self._listed(run)
            if doubt := _doubt(totals, run):
                await self._settle(run.row, state=Run.STATE_HELD, message=doubt, **FREE)
                return
        if phase <= Run.PHASE_COMPARISON:
            await self._progress(run, phase=Run.PHASE_COMPARISON)
            await self._compared(run)
        if run.row["mode"] != Run.MODE_QUICK:
            await self._progress(run, phase=Run.PHASE_CONTENT)
            await self._contents(run)
        await self._done(run)

    async def _listed(self, run: _Going) -> Totals:
        """List both sides: the catalogue first, so that what it has was there before the storage was asked."""
        await self._progress(run, phase=Run.PHASE_CATALOG, state=Run.STATE_RUNNING)
        await run.sides.clear()
        request = catalog_pb.StreamReplicasRequest(storage_element=run.element.id)
        async for answer in self._catalog.stub.StreamReplicas(request, timeout=_LISTED_SECONDS):
            await run.sides.expect(answer.files)
        await self._progress(run, phase=Run.PHASE_STORAGE)
        unusable = 0
        protocol = self._protocols.of(run.element)
        await self._protocols.room(run.element)
        async with aclosing(files_of(protocol, follow=run.element.read_only)) as pages:
            async for page in pages:
                usable = [one for one in page if _usable(one)]
                unusable += len(page) - len(usable)
                await run.sides.find(usable)
        totals = await run.sides.totals()
        await self._progress(
            run,
            expected_files=totals.expected,
            found_files=totals.found,
            found_bytes=totals.found_bytes,
            unusable_names=unusable,
        )
        return totals

    async def _compared(self, run: _Going) -> None:
        grace = timedelta(seconds=run.row["grace_seconds"])
        async with aclosing(run.sides.different()) as pages:
            async for page in pages:
                found = await self._looking.absent_or_resized(run.element, [(one.file_uid, one.path) for one in page])
                await self._recording.record(run.element, found, run.name)
        if run.element.read_only:
            # Somebody else's tree, of which we know what was adopted.
            return
        async with aclosing(run.sides.unknown()) as unknown:
            async for paths in unknown:
                dark = await self._looking.unknown(run.element, paths, grace)
                await self._recording.record(run.element, dark, run.name)

    async def _contents(self, run: _Going) -> None:
        read = run.row["mode"] == Run.MODE_FULL
        verified = run.row["verified_files"]
        async with aclosing(run.sides.alike(run.row["position"])) as pages:
            async for page in pages:
                found = await self._looking.unlike(run.element, page, read=read)
                await self._recording.record(run.element, found, run.name)
                verified += len(page)
                await self._progress(run, position=page[-1].path, verified_files=verified)

    async def _done(self, run: _Going) -> None:
        kinds = _QUICK if run.row["mode"] == Run.MODE_QUICK else _THOROUGH
        await self._recording.outdated(run.element.id, kinds, run.start_time)
        async with self._database.read() as connection:
            rows = (await connection.execute(counted(run.row["uid"]))).all()
        numbers = findings({row.kind: row.number for row in rows})
        ended = {"phase": Run.PHASE_DONE, "message": "", "end_time": datetime.now(UTC)}
        await self._settle(run.row, state=Run.STATE_SUCCEEDED, **ended, **numbers, **FREE)
        await run.sides.clear()

    async def _failed(self, row: Mapping[str, Any], message: str) -> None:
        """Try again after a pause; in the end, give up."""
        attempts, now = row["attempts"] + 1, datetime.now(UTC)
        if attempts < _TRIES:
            again = now + self._pause * 2**attempts
            await self._settle(
                row, state=Run.STATE_WAITING, attempts=attempts, message=message, next_attempt_time=again, **FREE
            )
            return
        await self._settle(row, state=Run.STATE_FAILED, attempts=attempts, message=message, end_time=now, **FREE)
        await Sides(self._database, row["uid"]).clear()

    async def _progress(self, run: _Going, **values: Any) -> None:
        await self._settle(run.row, **values)

    async def _settle(self, row: Mapping[str, Any], **values: Any) -> None:
        if "state" in values:
            values["state_time"] = datetime.now(UTC)
        statement = (
            update(reconciliation)
            .where(reconciliation.c.uid == row["uid"], reconciliation.c.lease_epoch == row["lease_epoch"])
            .values(**values)
            .returning(reconciliation)
        )
        async with self._database.write() as connection:
            changed = mappings(await connection.execute(statement))
            if not changed:
                raise _Lost
            await self._log.append(connection, [run_event(one) for one in changed])


def _usable(one: Entry) -> bool:
    try:
        one.path.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in one.path


def _doubt(totals: Totals, run: _Going) -> str:
    """Return why somebody has to look first: a storage that is wrongly mounted looks as if all was lost."""
    if not totals.missing:
        return ""
    if totals.found and (totals.missing <= _FEW or totals.missing * 100 <= run.max_lost_percent * totals.expected):
        return ""
    return (
        f"{totals.missing} of {totals.expected} files seem lost. If the storage is up and rightly mounted, and they "
        f"are lost, release it: khomas se check --release {run.row['uid']}"
    )
