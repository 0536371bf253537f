"""Commits of uploads as they stand in the database: recorded first, done after, answered once."""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import grant_pb2, storage_service_pb2
from khomas.kit.auth.principal import Principal
from khomas.kit.database import Database, in_values
from khomas.kit.errors import RequestIdReused
from khomas.kit.events import EventLog
from khomas.kit.leases import FREE, claim
from khomas.storage.errors import UploadState
from khomas.storage.tables import upload, upload_commit, uploaded_file
from khomas.storage.uploads.staging import Placement
from khomas.storage.uploads.uploads import PREFIX, upload_event

Answer = storage_service_pb2.BatchCommitUploadsResponse
_OPEN = grant_pb2.Upload.STATE_OPEN
_RETENTION = timedelta(hours=24)
# They are gone on with side by side, within the time of one.
_BATCH = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """By what a repeated request is known."""

    request_id: str
    # Subject of the caller.
    caller: str
    # Digest of the caller and the request_id.
    key: str
    # Digest of the request.
    digest: bytes

    @classmethod
    def of(cls, principal: Principal, request: storage_service_pb2.BatchCommitUploadsRequest) -> "Asked":
        """Describe a caller's request."""
        key = repr((principal.issuer, principal.subject, request.request_id))
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        return cls(request.request_id, principal.subject, hashlib.sha256(key.encode()).hexdigest(), digest)


@dataclass(frozen=True, slots=True)
class Intent:
    """What one commit is about to do."""

    uid: str
    placements: tuple[Placement, ...]
    catalog_request: catalog_pb.BatchCreateFilesRequest
    # Datasets that only some of the files join, with those files.
    memberships: tuple[tuple[str, tuple[str, ...]], ...]


class Intents:
    """Stores intents."""

    def __init__(self, database: Database, log: EventLog, owner: str, lease: timedelta) -> None:
        self._database = database
        self._log = log
        self._owner = owner
        self._lease = lease

    async def uploads(self, uids: Sequence[str]) -> list[Row[Any]]:
        """Read uploads, one row a file that has arrived, or one without a file."""
        query = (
            select(upload, *(column for column in uploaded_file.c if column is not uploaded_file.c.upload_uid))
            .select_from(upload.outerjoin(uploaded_file, uploaded_file.c.upload_uid == upload.c.uid))
            .where(in_values(upload.c.uid, uids))
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).all())

    async def before(self, asked: Asked) -> tuple[Intent, Answer | None] | None:
        """Return the intent of the same request and its answer, if it was made before."""
        query = select(upload_commit).where(upload_commit.c.request_key == asked.key)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        if row.request_digest != asked.digest:
            raise RequestIdReused(request_id=asked.request_id)
        return _intent(row), None if row.answer is None else Answer.FromString(row.answer)

    async def record(self, intent: Intent, asked: Asked) -> bool:
        """Record an intent, leased to us, and take its uploads; raise UploadState if they are not to be had.

        False if the same caller has used the request_id before, perhaps a moment ago.
        """
        now = datetime.now(UTC)
        row = {
            "uid": intent.uid,
            "request_key": asked.key,
            "request_digest": asked.digest,
            "placements": [astuple(placement) for placement in intent.placements],
            "catalog_request": intent.catalog_request.SerializeToString(),
            "memberships": intent.memberships,
            "lease_owner": self._owner,
            "lease_expire_time": now + self._lease,
            "create_time": now,
        }
        uids = {placement.upload for placement in intent.placements}
        claim = (
            update(upload)
            .where(in_values(upload.c.uid, uids), upload.c.state == _OPEN, upload.c.commit_uid.is_(None))
            .values(commit_uid=intent.uid)
            .returning(upload.c.uid)
        )
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(upload_commit), row)
                claimed = set((await connection.scalars(claim)).all())
                if lost := uids - claimed:
                    raise UploadState(name=PREFIX + min(lost), state="being committed")
        except IntegrityError:
            return False
        return True

    async def lease(self, uid: str) -> bool:
        """Take an unfinished intent that nobody works on; tell whether that succeeded."""
        async with self._database.write() as connection:
            # Whoever asks does not wait for the turn of the loop.
            paused = update(upload_commit).where(upload_commit.c.uid == uid, upload_commit.c.lease_owner.is_(None))
            await connection.execute(paused.values(FREE))
            return bool(await self._claim(connection, select(upload_commit.c.uid).where(upload_commit.c.uid == uid)))

    async def lease_unfinished(self) -> list[Intent]:
        """Take some of the intents that nobody works on: those first that have waited longest."""
        waiting = func.coalesce(upload_commit.c.lease_expire_time, upload_commit.c.create_time)
        async with self._database.write() as connection:
            return await self._claim(connection, select(upload_commit.c.uid).order_by(waiting).limit(_BATCH))

    async def release(self, uid: str) -> None:
        """Let whoever asks go on with an unfinished intent, and the loop after a pause: others have their turn."""
        pause = {"lease_owner": None, "lease_expire_time": datetime.now(UTC) + self._lease}
        async with self._database.write() as connection:
            await connection.execute(update(upload_commit).where(upload_commit.c.uid == uid).values(pause))

    async def _claim(self, connection: AsyncConnection, wanted: Select[str]) -> list[Intent]:
        now = datetime.now(UTC)
        unfinished = wanted.where(upload_commit.c.answer.is_(None))
        rows = await claim(connection, upload_commit, unfinished, owner=self._owner, now=now, until=now + self._lease)
        return [_intent(row) for row in rows]

    async def finish(self, uid: str, answer: Answer) -> None:
        """Store the answer; the uploads are COMMITTED."""
        # The age of an answer counts, also of one that has taken long: its news are waited for, and it is kept.
        answered = {"answer": answer.SerializeToString(), "create_time": datetime.now(UTC)}
        commit = update(upload_commit).where(upload_commit.c.uid == uid).values(answered)
        uploads = (
            update(upload)
            .where(upload.c.commit_uid == uid)
            .values(state=grant_pb2.Upload.STATE_COMMITTED)
            .returning(upload)
        )
        async with self._database.write() as connection:
            await connection.execute(commit)
            rows = (await connection.execute(uploads)).all()
            await self._log.append(connection, [upload_event(row, "committed") for row in rows])

    async def forget(self, uid: str) -> None:
        """Take an intent back; the uploads are open again."""
        async with self._database.write() as connection:
            await connection.execute(update(upload).where(upload.c.commit_uid == uid).values(commit_uid=None))
            await connection.execute(delete(upload_commit).where(upload_commit.c.uid == uid))

    async def prune(self) -> None:
        """Forget answers that nobody may ask for any more."""
        old = datetime.now(UTC) - _RETENTION
        statement = delete(upload_commit).where(upload_commit.c.create_time < old, upload_commit.c.answer.is_not(None))
        async with self._database.write() as connection:
            await connection.execute(statement)


def _intent(row: Row[Any]) -> Intent:
    return Intent(
        uid=row.uid,
        placements=tuple(Placement(*placement) for placement in row.placements),
        catalog_request=catalog_pb.BatchCreateFilesRequest.FromString(row.catalog_request),
        memberships=tuple((dataset, tuple(names)) for dataset, names in row.memberships),
    )
