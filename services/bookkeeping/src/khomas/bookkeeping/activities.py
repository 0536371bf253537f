"""Records what was done, and lists it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.archive.v1.release_pb2 import Release
from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2 as pb
from khomas.api.bookkeeping.v1.provenance_pb2 import Activity
from khomas.api.catalog.v1.adoption_pb2 import Adoption
from khomas.api.common.v1.event_pb2 import Event
from khomas.api.scheduler.v1.job_pb2 import Attempt, Job
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.api.storage.v1.grant_pb2 import Upload
from khomas.bookkeeping.tables import activity, generated, used
from khomas.kit.database import AnyRow, Database, in_values, insert_many, insert_new
from khomas.kit.events import EventLog, NewEvent
from khomas.kit.filtering import Fields, fields, where
from khomas.kit.ids import is_uid
from khomas.kit.paging import Ordering, list_page

KINDS = ("job", "adoption", "upload", "release")
_FIELDS: Fields = {
    "kind": fields.choice(activity.c.kind, KINDS),
    "agent": fields.text(activity.c.agent),
    "origin": fields.text(activity.c.origin),
    "uid": fields.text(activity.c.uid),
    "start_time": fields.time(activity.c.start_time),
    "end_time": fields.time(activity.c.end_time),
}


@dataclass(frozen=True, slots=True)
class Done:
    """Something that was done."""

    uid: str
    kind: str
    description: str
    start_time: datetime | None
    end_time: datetime | None
    agent: str = ""
    origin: str = ""
    job: str = ""
    native_id: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    cpu_time: timedelta = timedelta()
    used: Sequence[str] = ()
    generated: Sequence[str] = ()


class Activities:
    """Keeps and lists activities."""

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database = database
        self._log = log

    async def record(self, connection: AsyncConnection, done: Sequence[Done]) -> None:
        """Keep activities, each once, with five statements."""
        by_uid = {one.uid: one for one in done}
        made = await insert_new(connection, activity, [_row(one) for one in by_uid.values()], *activity.c)
        for table, key in ((used, "used"), (generated, "generated")):
            rows = [
                {"activity_id": row.id, "file": file}
                for row in made
                for file in dict.fromkeys(getattr(by_uid[row.uid], key))
            ]
            await insert_many(connection, table, rows)
        messages = [_message(row, by_uid[row.uid].used, by_uid[row.uid].generated) for row in made]
        events = [
            NewEvent("bookkeeping.activity.recorded", one.name, row.uid, row.origin, one)
            for row, one in zip(made, messages, strict=True)
        ]
        await self._log.append(connection, events)

    async def page(self, request: pb.ListActivitiesRequest) -> pb.ListActivitiesResponse:
        """List them, newest first."""
        query = select(activity).where(where(request.filter, _FIELDS))
        async with self._database.read() as connection:
            page = await list_page(connection, query, request, _NEWEST)
            found = await activity_messages(connection, page.rows)
        return pb.ListActivitiesResponse(activities=found, next_page_token=page.next_page_token)


_NEWEST = Ordering({"id": activity.c.id}, activity.c.id, "id desc")


async def files_by_activity(connection: AsyncConnection, table: Any, ids: Iterable[int]) -> dict[int, list[str]]:
    """Return the files that activities used, or generated."""
    query = select(table).where(in_values(table.c.activity_id, list(ids))).order_by(table.c.activity_id, table.c.file)
    found: dict[int, list[str]] = {}
    for row in await connection.execute(query):
        found.setdefault(row.activity_id, []).append(row.file)
    return found


async def activity_messages(connection: AsyncConnection, rows: Sequence[AnyRow]) -> list[Activity]:
    """Return the activities of these rows, with two statements."""
    ids = [row.id for row in rows]
    inputs = await files_by_activity(connection, used, ids)
    outputs = await files_by_activity(connection, generated, ids)
    return [_message(row, inputs.get(row.id, ()), outputs.get(row.id, ())) for row in rows]


def _message(row: AnyRow, inputs: Sequence[str], outputs: Sequence[str]) -> Activity:
    cpu = Duration()
    cpu.FromMicroseconds(row.cpu_microseconds)
    return Activity(
        name=f"activities/{row.uid}",
        kind=row.kind,
        description=row.description,
        start_time=row.start_time,
        end_time=row.end_time,
        used=inputs,
        generated=outputs,
        agent=row.agent,
        attributes=row.attributes,
        origin=row.origin,
        cpu_time=cpu if row.cpu_microseconds else None,
    )


def _row(one: Done) -> dict[str, object]:
    return {
        "uid": one.uid,
        "kind": one.kind,
        "description": one.description,
        "start_time": one.start_time,
        "end_time": one.end_time,
        "agent": one.agent,
        "origin": one.origin,
        "job": one.job,
        "native_id": one.native_id,
        "attributes": dict(one.attributes),
        "cpu_microseconds": one.cpu_time // timedelta(microseconds=1),
    }


def of_jobs(jobs: Iterable[Job]) -> list[Done]:
    """Return the attempts that succeeded."""
    return [
        _of_attempt(job, job.attempts[-1])
        for job in jobs
        if job.status.state == JobState.JOB_STATE_SUCCEEDED and job.attempts
    ]


def _of_attempt(job: Job, attempt: Attempt) -> Done:
    facts = {
        "job": job.name,
        "attempt": str(attempt.number),
        "backend": attempt.backend,
        "native_id": attempt.native_id,
        "queue": attempt.queue,
        "site": attempt.site,
        "node": attempt.node,
        "exit_code": str(attempt.exit_code) if attempt.HasField("exit_code") else "",
        "script_sha256": attempt.script_sha256,
    }
    usage = attempt.usage
    return Done(
        uid=attempt.uid,
        kind="job",
        description=f"attempt {attempt.number} of {job.name}",
        start_time=_moment(attempt.start_time) or _moment(attempt.create_time),
        end_time=_moment(attempt.end_time) or _moment(job.end_time),
        agent=job.owner,
        origin=job.origin,
        job=job.name,
        native_id=attempt.native_id,
        attributes={key: value for key, value in facts.items() if value},
        cpu_time=usage.cpu_user_time.ToTimedelta() + usage.cpu_system_time.ToTimedelta(),
        used=attempt.inputs,
        generated=[output.name for output in attempt.outputs if output.name],
    )


def of_adoptions(events: Iterable[Event]) -> list[Done]:
    """Return the adoptions that succeeded."""
    found = []
    for event in events:
        one = Adoption()
        if event.resource.Unpack(one) and one.state == Adoption.STATE_SUCCEEDED:
            facts = {"storage_element": one.storage_element, "path": one.path, "destination": one.destination}
            found.append(
                Done(
                    uid=event.subject_uid,
                    kind="adoption",
                    description=f"{one.adopted_files} files of {one.storage_element} adopted as {one.destination}",
                    start_time=_moment(one.create_time),
                    end_time=_moment(one.end_time),
                    agent=one.owner,
                    attributes={**facts, "files": str(one.adopted_files)},
                )
            )
    return found


def of_uploads(events: Iterable[Event]) -> list[Done]:
    """Return the uploads of people; those of attempts and releases are told by these themselves."""
    found = []
    for event in events:
        one = Upload()
        if event.resource.Unpack(one) and not is_uid(one.origin):
            found.append(
                Done(
                    uid=event.subject_uid,
                    kind="upload",
                    description=f"upload to {', '.join(one.storage_elements)}",
                    start_time=_moment(one.create_time),
                    end_time=_moment(event.create_time),
                    agent=one.owner,
                    origin=one.origin,
                )
            )
    return found


def of_release(release: Release) -> Done:
    """Return the activity that made a release, with its products."""
    products = release.products
    copied = [product for product in products if product.file and product.file != product.source]
    exported = [file for export in release.exports for file in export.files]
    return Done(
        uid=release.uid,
        kind="release",
        description=f"release of {len(products)} files: {release.title or release.name}",
        start_time=_moment(release.create_time),
        end_time=_moment(release.publish_time) or _moment(release.create_time),
        agent=release.owner,
        attributes={"release": release.name, "dataset": release.dataset, "content_digest": release.content_digest},
        used=[product.source for product in products],
        generated=[*(product.file for product in copied), *exported],
    )


def _moment(stamp: Timestamp) -> datetime | None:
    from_utc = stamp.ToDatetime()
    return from_utc.replace(tzinfo=UTC) if stamp.seconds else None
