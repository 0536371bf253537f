"""The adoption of trees: a scan by the storage, committed in batches, resumed after a restart."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime

import grpc
from sqlalchemy import and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import adoption_pb2
from khomas.api.catalog.v1 import catalog_service_pb2 as pb
from khomas.api.catalog.v1.adoption_pb2 import Adoption
from khomas.api.catalog.v1.file_pb2 import File
from khomas.api.common.v1 import explanation_pb2
from khomas.api.common.v1.value_pb2 import Value
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.catalog.adoption_reasons import explanation
from khomas.catalog.adoption_rules import as_file, check_wanted, found_values, missing_keys
from khomas.catalog.creation import Creation, check_files
from khomas.catalog.errors import AdoptionMissing, AdoptionState, FileInUse
from khomas.catalog.keys import PREFIX as KEY_PREFIX
from khomas.catalog.keys import Keys
from khomas.catalog.membership import Membership
from khomas.catalog.names import default_path
from khomas.catalog.path_patterns import TooSlow, matched
from khomas.catalog.tables import ACTIVE, adoption, file, replica
from khomas.catalog.undoing import take_back
from khomas.kit.boundary.call import current_principal
from khomas.kit.boundary.status import reason_of
from khomas.kit.database import AnyRow, Database, in_values
from khomas.kit.errors import DomainError, FieldInvalid, UpstreamUnavailable
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.idempotency import Once
from khomas.kit.ids import new_uid
from khomas.kit.paging import Ordering, list_page

log = logging.getLogger(__name__)

_PREFIX = "adoptions/"
_TRIAL_FILES = 1000
_MAX_PROBLEMS = 100
_SCAN_SECONDS = 24 * 3600.0
_ORDERING = Ordering({"uid": adoption.c.uid}, adoption.c.uid, "uid desc")


class Adoptions:
    """The rpcs about adoptions, and the loop that carries them out."""

    def __init__(
        self,
        database: Database,
        once: Once,
        events: EventLog,
        keys: Keys,
        creation: Creation,
        storage: grpc.aio.Channel,
        batch: int,
    ) -> None:
        self._database = database
        self._once = once
        self._events = events
        self._keys = keys
        self._creation = creation
        self._storage = StorageServiceStub(storage)
        self._batch = batch
        self._wanted = asyncio.Event()

    async def create(self, request: pb.CreateAdoptionRequest) -> Adoption:
        """Start an adoption; the loop carries it out."""
        check_wanted(request.adoption)
        if request.validate_only:
            return await self._try(request.adoption)
        answer = await self._once(request, Adoption, lambda connection: self._insert(connection, request.adoption))
        self._wanted.set()
        return answer

    async def _insert(self, connection: AsyncConnection, wanted: Adoption) -> Adoption:
        row = {
            "uid": new_uid(),
            "wanted": wanted.SerializeToString(),
            "owner": current_principal().subject,
            "state": Adoption.STATE_RUNNING,
            "after_path": "",
            "adopted_files": 0,
            "adopted_bytes": 0,
            "known_files": 0,
            "problems": [],
            "create_time": datetime.now(UTC),
        }
        made = (await connection.execute(insert(adoption).values(row).returning(*adoption.c))).one()
        return await self._tell(connection, made)

    async def get(self, name: str) -> Adoption:
        """Read one."""
        async with self._database.read() as connection:
            return _proto(await _row(connection, name))

    async def explain(self, name: str) -> explanation_pb2.Explanation:
        """Say why one waits or has failed."""
        async with self._database.read() as connection:
            row = await _row(connection, name)
        return explanation(_proto(row), row)

    async def page(self, request: pb.ListAdoptionsRequest) -> pb.ListAdoptionsResponse:
        """List them, newest first."""
        async with self._database.read() as connection:
            page = await list_page(connection, select(adoption), request, _ORDERING)
        return pb.ListAdoptionsResponse(
            adoptions=[_proto(row) for row in page.rows], next_page_token=page.next_page_token
        )

    async def undo(self, request: pb.UndoAdoptionRequest) -> Adoption:
        """Take the files of an adoption out of the catalogue; the bytes stay."""
        return await self._once(request, Adoption, lambda connection: self._undo(connection, request.name))

    async def _undo(self, connection: AsyncConnection, name: str) -> Adoption:
        row = await _row(connection, name, lock=True)
        if row.state not in (Adoption.STATE_SUCCEEDED, Adoption.STATE_FAILED):
            raise AdoptionState(name=name, state=_state_name(row.state))
        used = await take_back(connection, Membership(self._database, self._events), self._events, row.uid)
        if used is not None:
            raise FileInUse(name=used[0], child=used[1])
        done = {"reason": adoption_pb2.ADOPTION_REASON_UNSPECIFIED, "end_time": datetime.now(UTC)}
        return await self._save(connection, row, state=Adoption.STATE_UNDONE, **done)

    async def work(self) -> None:
        """Carry out what is RUNNING, for ever."""
        while True:
            self._wanted.clear()
            async with self._database.read() as connection:
                query = select(adoption).where(adoption.c.state == Adoption.STATE_RUNNING).order_by(adoption.c.uid)
                rows = (await connection.execute(query)).all()
            for row in rows:
                await self._carry_out(row)
            if not rows:
                await self._wanted.wait()

    async def _carry_out(self, row: AnyRow) -> None:
        wanted = Adoption.FromString(row.wanted)
        try:
            async for scanned in self._scan(wanted, after=row.after_path):
                row = await self._commit(row, wanted, scanned)
            await self._end(row, Adoption.STATE_SUCCEEDED, [], adoption_pb2.ADOPTION_REASON_UNSPECIFIED)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                log.warning("adoption.waits", extra={"adoption": row.uid, "reason": reason_of(error)})
                await self._wait(row, error.details() or "")
                await asyncio.sleep(1)
                return
            said = f"The storage says: {error.details()}"
            await self._end(row, Adoption.STATE_FAILED, [said], adoption_pb2.ADOPTION_REASON_STORAGE_REFUSED)
        except _Overtaken:
            return
        except DomainError as error:
            await self._end(row, Adoption.STATE_FAILED, [error.message], adoption_pb2.ADOPTION_REASON_FILE_REFUSED)

    async def _scan(
        self, wanted: Adoption, after: str = "", limit: int = 0
    ) -> AsyncIterator[list[storage_pb.ScannedFile]]:
        request = storage_pb.ScanTreeRequest(
            storage_element=wanted.storage_element,
            path=wanted.path,
            include=wanted.include,
            checksums=limit == 0,
            cards=sorted({rule.card for rule in wanted.headers}),
            after_path=after,
            limit=limit,
        )
        batch: list[storage_pb.ScannedFile] = []
        async for answer in self._storage.ScanTree(request, timeout=_SCAN_SECONDS):
            batch += answer.files
            while len(batch) >= self._batch:
                yield batch[: self._batch]
                batch = batch[self._batch :]
        if batch:
            yield batch

    async def _commit(self, row: AnyRow, wanted: Adoption, scanned: Sequence[storage_pb.ScannedFile]) -> AnyRow:
        """Commit a batch with the place that it reaches in one transaction."""
        readable = [one for one in scanned if not one.error]
        files, left_out = await self._files(wanted, readable, row.uid)
        problems = [*(f"{one.path}: {one.error}" for one in scanned if one.error), *left_out]
        check_files(files)
        async with self._database.write() as connection:
            known = await _known(connection, files, wanted.storage_element)
            new = [one for one in files if one.name not in known]
            datasets = [wanted.dataset] if wanted.dataset else []
            if new:
                await self._creation.commit(connection, row.owner, new, datasets)
            await self._save(
                connection,
                row,
                after_path=scanned[-1].path,
                adopted_files=row.adopted_files + len(new),
                adopted_bytes=row.adopted_bytes + sum(one.size_bytes for one in new),
                known_files=row.known_files + len(known),
                problems=[*row.problems, *problems][:_MAX_PROBLEMS],
                reason=adoption_pb2.ADOPTION_REASON_UNSPECIFIED,
            )
            return await _row(connection, _PREFIX + row.uid)

    async def _files(
        self, wanted: Adoption, scanned: Sequence[storage_pb.ScannedFile], uid: str
    ) -> tuple[list[File], list[str]]:
        """Return what scanned files become, and what is left out; declares keys where that is wanted."""
        values = await _values(wanted, scanned)
        async with self._database.read() as connection:
            keys = await self._keys.all(connection)
        if wanted.declare_keys and (missing := missing_keys(values, keys)):
            # In a transaction of its own: keys are remembered once they are read.
            async with self._database.write() as connection:
                await self._keys.declare(connection, missing)
        async with self._database.read() as connection:
            keys = await self._keys.of(connection, {key for found in values for key in found})
        return _made(wanted, scanned, values, uid, {name: key.type for name, key in keys.items()})

    async def _try(self, wanted: Adoption) -> Adoption:
        """Look at the first files and tell what an adoption would do, changing nothing."""
        answer = Adoption()
        answer.CopyFrom(wanted)
        async with self._database.read() as connection:
            types = {name: key.type for name, key in (await self._keys.all(connection)).items()}
        problems: list[str] = []
        try:
            async for scanned in self._scan(wanted, limit=_TRIAL_FILES):
                readable = [one for one in scanned if not one.error]
                values = await _values(wanted, readable)
                missing = missing_keys(values, types)
                if wanted.declare_keys:
                    types |= {key.name.removeprefix(KEY_PREFIX): key.type for key in missing}
                else:
                    problems += [
                        f"The metadata key {key.name.removeprefix(KEY_PREFIX)} is not declared." for key in missing
                    ]
                files, left_out = _made(wanted, readable, values, "", types)
                answer.adopted_files += len(files)
                answer.adopted_bytes += sum(one.size_bytes for one in files)
                problems += [*(f"{one.path}: {one.error}" for one in scanned if one.error), *left_out]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise UpstreamUnavailable(service="storage") from error
            problems.append(f"The storage says: {error.details()}")
        answer.problems.extend([*dict.fromkeys(problems)][:_MAX_PROBLEMS])
        return answer

    async def _wait(self, row: AnyRow, message: str) -> None:
        """Note since when it waits for the storage; for whoever asks, not for those who watch."""
        waits = {"reason": adoption_pb2.ADOPTION_REASON_STORAGE_AWAY, "reason_message": message}
        if row.reason != waits["reason"]:
            waits["reason_time"] = datetime.now(UTC)
        async with self._database.write() as connection:
            going = (adoption.c.uid == row.uid, adoption.c.state == Adoption.STATE_RUNNING)
            await connection.execute(update(adoption).values(waits).where(*going))

    async def _end(
        self, row: AnyRow, state: int, problems: Sequence[str], reason: adoption_pb2.AdoptionReason.ValueType
    ) -> None:
        now = datetime.now(UTC)
        async with self._database.write() as connection:
            await self._save(
                connection,
                row,
                state=state,
                problems=[*row.problems, *problems][:_MAX_PROBLEMS],
                reason=reason,
                reason_message=" ".join(problems),
                reason_time=now,
                end_time=now,
            )

    async def _save(self, connection: AsyncConnection, row: AnyRow, **values: object) -> Adoption:
        """Change an adoption that is still as it was read; another process may carry it out too."""
        columns = adoption.c
        unchanged = and_(columns.state == row.state, columns.after_path == row.after_path)
        saving = update(adoption).values(values).where(columns.uid == row.uid, unchanged).returning(*columns)
        saved = (await connection.execute(saving)).one_or_none()
        if saved is None:
            raise _Overtaken
        return await self._tell(connection, saved)

    async def _tell(self, connection: AsyncConnection, row: AnyRow) -> Adoption:
        message = _proto(row)
        event = NewEvent("catalog.adoption.changed", message.name, row.uid, "", message)
        await self._events.append(connection, [event])
        return message


class _Overtaken(Exception):
    """Another process has gone on with the adoption; what this one was about to commit is not."""


async def _values(wanted: Adoption, scanned: Sequence[storage_pb.ScannedFile]) -> list[dict[str, tuple[Value, str]]]:
    try:
        from_paths = await matched(wanted.path_patterns, [one.path for one in scanned])
    except TooSlow as error:
        raise FieldInvalid.of("adoption.path_patterns", "take too long to match; nest no + or * in another") from error
    return [found_values(one, wanted, found) for one, found in zip(scanned, from_paths, strict=True)]


def _made(
    wanted: Adoption,
    scanned: Sequence[storage_pb.ScannedFile],
    values: Sequence[Mapping[str, tuple[Value, str]]],
    uid: str,
    types: Mapping[str, int],
) -> tuple[list[File], list[str]]:
    made = [as_file(one, wanted, uid, found, types) for one, found in zip(scanned, values, strict=True)]
    return [one for one, _ in made if one is not None], [problem for _, told in made for problem in told]


async def _known(connection: AsyncConnection, files: Sequence[File], storage_element: str) -> set[str]:
    """Return the names that are in the catalogue already with this very replica."""
    query = (
        select(file.c.name, file.c.adler32, replica.c.path)
        .join(replica, replica.c.file_id == file.c.id)
        .where(
            in_values(file.c.name, [one.name for one in files]),
            ACTIVE,
            replica.c.storage_element == storage_element,
        )
    )
    there = {row.name: (row.adler32, row.path) for row in await connection.execute(query)}
    return {
        one.name
        for one in files
        if one.name in there
        and there[one.name] in {(one.checksums.adler32, path) for path in _stored(one, default_path(one.name))}
    }


def _stored(one: File, default: str) -> tuple[str | None, ...]:
    path = one.replicas[0].path
    return (path, None) if path == default else (path,)


async def _row(connection: AsyncConnection, name: str, *, lock: bool = False) -> AnyRow:
    query = select(adoption).where(adoption.c.uid == name.removeprefix(_PREFIX))
    if lock:
        query = query.with_for_update()
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise AdoptionMissing(name=name)
    return row


def _state_name(state: int) -> str:
    return Adoption.State.Name(Adoption.State.ValueType(state)).removeprefix("STATE_")


def _proto(row: AnyRow) -> Adoption:
    message = Adoption.FromString(row.wanted)
    message.name = _PREFIX + row.uid
    message.owner = row.owner
    message.state = Adoption.State.ValueType(row.state)
    message.adopted_files = row.adopted_files
    message.adopted_bytes = row.adopted_bytes
    message.known_files = row.known_files
    message.problems[:] = row.problems
    message.create_time.FromDatetime(row.create_time)
    if row.end_time is not None:
        message.end_time.FromDatetime(row.end_time)
    return message
