"""Submits again what ended badly: new jobs from the same specs, whose origin is the old job."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.database import in_values
from khomas.kit.ids import new_uids
from khomas.kit.telemetry.trace import current_traceparent
from khomas.scheduler import tables
from khomas.scheduler.errors import JobStateForbids
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.intake.drafts import Draft, new_job
from khomas.scheduler.intake.frozen import Picks
from khomas.scheduler.lifecycle.bounds import grown_bytes, grown_span
from khomas.scheduler.messages import state_name
from khomas.scheduler.names import split, uids_of
from khomas.scheduler.records import Job, State
from khomas.scheduler.store.changes import read_counts
from khomas.scheduler.store.lookup import Lookup
from khomas.scheduler.store.workflow import affected, carried_over, dependencies_of, in_vain, newest

_BAD: tuple[State, ...] = (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class _Old:
    """A job that is tried again, or an array of which these children are."""

    job: Job
    indices: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Retried:
    """Drafts, and the uid of the job whose place each takes."""

    drafts: Sequence[Draft]
    originals: Sequence[str]

    @property
    def jobs(self) -> int:
        """How many jobs are tried again, children counted one by one."""
        return sum(len(draft.blueprint) for draft in self.drafts)

    def rescues(self) -> list[dict[str, str]]:
        """Rows that say whose place each takes."""
        pairs = zip(self.drafts, self.originals, strict=True)
        return [{"job": draft.job.uid, "original": original} for draft, original in pairs]


@dataclass(frozen=True, slots=True)
class Retrying:
    """Drafts jobs that take the place of others."""

    lookup: Lookup

    async def drafts(self, connection: AsyncConnection, request: pb.RetryJobsRequest, owner: str) -> Retried:
        """One draft a job or array. Raises `JobStateForbids` when nothing of a name ended badly."""
        wanted = uids_of(request.names)
        if request.workflow:
            await self.lookup.lock(connection, wanted)  # they exist
            wanted = await affected(connection, await newest(connection, wanted))
        jobs = await self.lookup.lock(connection, wanted)
        old = await self._own_failures(connection, list(jobs.values()), request)
        if request.workflow:
            victims = [job for job in jobs.values() if in_vain(job)]
            old = [one for one in old if one.job.uid not in {job.uid for job in victims}]
            # In the order of their submission.
            old = sorted([*old, *[_Old(job) for job in victims]], key=lambda one: one.job.uid)
        if not old:
            first = next(iter(jobs.values()))
            raise JobStateForbids(name=first.name, state=state_name(first.state))
        plans = await self.lookup.blueprints.of(connection, {one.job.spec for one in old})
        now = datetime.now(UTC)
        drafts = [
            _draft(one, plans[one.job.spec], request, uid, owner, now)
            for one, uid in zip(old, new_uids(len(old)), strict=True)
        ]
        if request.workflow:
            drafts = await _in_workflow(connection, old, drafts)
        return Retried(drafts, [one.job.uid for one in old])

    async def _own_failures(
        self, connection: AsyncConnection, jobs: Sequence[Job], request: pb.RetryJobsRequest
    ) -> list[_Old]:
        """Jobs that ended badly, and arrays with such children."""
        indices = await self._indices(connection, jobs, request)
        arrays = {job.uid: job for job in jobs if job.is_array}
        arrays |= await self.lookup.lock(connection, indices.keys() - arrays.keys())
        singles = [job for job in jobs if not job.is_array and not job.parent and _chosen(job, request)]
        chosen = [_Old(arrays[uid], indices[uid]) for uid in sorted(indices) if indices[uid]]
        return [*(_Old(job) for job in singles), *chosen]

    async def _indices(
        self, connection: AsyncConnection, jobs: Sequence[Job], request: pb.RetryJobsRequest
    ) -> dict[str, Sequence[int]]:
        """Indices of the children to try again, by array."""
        chosen: dict[str, set[int]] = {job.uid: set() for job in jobs if job.is_array}
        if chosen:
            table = tables.job.c
            query = select(table.parent, table.index.label("number")).where(in_values(table.parent, chosen.keys()))
            query = query.where(table.state.in_(_BAD))
            if request.reasons:
                query = query.where(table.reason.in_(list(request.reasons)))
            for parent, index in (await connection.execute(query)).all():
                chosen[parent].add(index)
        for job in jobs:
            if job.is_array and job.rest_state in _BAD and _reason_chosen(job.rest_reason, request):
                chosen[job.uid] |= set(range(job.made, job.total))
            if job.parent and _chosen(job, request):
                chosen.setdefault(split(job.uid)[0], set()).add(job.index)
        return {uid: sorted(found) for uid, found in chosen.items()}


async def _in_workflow(connection: AsyncConnection, old: Sequence[_Old], drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts, each depending on what takes the place of what the old job depended on."""
    places: dict[str, str] = {}
    for one, draft in zip(old, drafts, strict=True):
        places[one.job.uid] = draft.job.uid
        places |= {f"{one.job.uid}/{index}": f"{draft.job.uid}/{at}" for at, index in enumerate(one.indices)}
    sizes = {draft.job.uid: len(draft.blueprint) for draft in drafts}
    known = await dependencies_of(connection, [one.job.uid for one in old])
    counts = await read_counts(connection, [one.job.uid for one in old if one.job.is_array])
    return [
        replace(draft, dependencies=carried_over(draft.job.uid, known[one.job.uid], places, sizes, counts))
        for one, draft in zip(old, drafts, strict=True)
    ]


def _draft(old: _Old, plan: Blueprint, request: pb.RetryJobsRequest, uid: str, owner: str, now: datetime) -> Draft:
    spec = JobSpec()
    spec.CopyFrom(plan.spec)
    _grow(spec, request)
    # Those of a workflow are jobs of their own; without it, what comes late is merged by hand.
    del spec.mergers[:]
    del spec.dependencies[:]
    frozen = plan.frozen
    if old.indices:
        frozen = replace(frozen, picks=Picks.of([plan.original_index(index) for index in old.indices]))
    blueprint = Blueprint(spec, frozen)
    job = new_job(uid, uid, blueprint, len(blueprint), owner, old.job.uid, now, current_traceparent())
    return Draft(job._replace(merges=old.job.merges, deadline=None), blueprint, ())


def _grow(spec: JobSpec, request: pb.RetryJobsRequest) -> None:
    needs = spec.resources
    if request.memory_bytes:
        needs.memory_bytes = request.memory_bytes
    elif request.memory_factor:
        needs.memory_bytes = grown_bytes(needs.memory_bytes, request.memory_factor)
    if request.HasField("wall_time"):
        needs.wall_time.CopyFrom(request.wall_time)
    elif request.wall_time_factor:
        needs.wall_time.FromTimedelta(grown_span(needs.wall_time, request.wall_time_factor))
    for limit in ("start_after", "start_before", "finish_before"):
        spec.limits.ClearField(limit)


def _chosen(job: Job, request: pb.RetryJobsRequest) -> bool:
    return job.state in _BAD and _reason_chosen(job.reason, request)


def _reason_chosen(reason: int, request: pb.RetryJobsRequest) -> bool:
    return not request.reasons or reason in request.reasons
