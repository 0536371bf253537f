"""Submits again what ended badly: new jobs from the same specs, whose origin is the old job."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.database import in_values
from khomas.kit.ids import new_uids
from khomas.scheduler import tables
from khomas.scheduler.blueprint import Blueprint
from khomas.scheduler.errors import JobStateForbids
from khomas.scheduler.frozen import Picks
from khomas.scheduler.intake import Draft, new_job
from khomas.scheduler.messages import state_name
from khomas.scheduler.names import split, uids_of
from khomas.scheduler.records import Job, State
from khomas.scheduler.store.lookup import Lookup

_BAD: tuple[State, ...] = (JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class Retrying:
    """Drafts jobs that take the place of others."""

    lookup: Lookup

    async def drafts(self, connection: AsyncConnection, request: pb.RetryJobsRequest, owner: str) -> list[Draft]:
        """One draft a job or array. Raises `JobStateForbids` when nothing of a name ended badly."""
        jobs = await self.lookup.lock(connection, uids_of(request.names))
        indices = await self._indices(connection, list(jobs.values()), request)
        arrays = {job.uid: job for job in jobs.values() if job.is_array}
        others = await self.lookup.lock(connection, indices.keys() - arrays.keys())
        arrays |= others
        singles = [job for job in jobs.values() if not job.is_array and not job.parent and _chosen(job, request)]
        old = [(job, ()) for job in singles] + [(arrays[uid], indices[uid]) for uid in sorted(indices) if indices[uid]]
        if not old:
            first = next(iter(jobs.values()))
            raise JobStateForbids(name=first.name, state=state_name(first.state))
        plans = await self.lookup.blueprints.of(connection, {job.spec for job, _ in old})
        now = datetime.now(UTC)
        return [
            _draft(job, chosen, plans[job.spec], request, uid, owner, now)
            for (job, chosen), uid in zip(old, new_uids(len(old)), strict=True)
        ]

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


def _draft(
    old: Job,
    indices: Sequence[int],
    plan: Blueprint,
    request: pb.RetryJobsRequest,
    uid: str,
    owner: str,
    now: datetime,
) -> Draft:
    spec = JobSpec()
    spec.CopyFrom(plan.spec)
    _grow(spec, request)
    # Mergers of an array wait for all of it; what comes late is merged by hand.
    del spec.mergers[:]
    del spec.dependencies[:]
    frozen = plan.frozen
    if indices:
        frozen = replace(frozen, picks=Picks.of([plan.original_index(index) for index in indices]))
    blueprint = Blueprint(spec, frozen)
    job = new_job(uid, uid, blueprint, len(blueprint), owner, old.uid, now)
    return Draft(replace(job, merges=old.merges, deadline=None), blueprint, ())


def _grow(spec: JobSpec, request: pb.RetryJobsRequest) -> None:
    needs = spec.resources
    if request.memory_bytes:
        needs.memory_bytes = request.memory_bytes
    elif request.memory_factor:
        needs.memory_bytes = int(needs.memory_bytes * request.memory_factor)
    if request.HasField("wall_time"):
        needs.wall_time.CopyFrom(request.wall_time)
    elif request.wall_time_factor:
        needs.wall_time.FromTimedelta(needs.wall_time.ToTimedelta() * request.wall_time_factor)
    for limit in ("start_after", "start_before", "finish_before"):
        spec.limits.ClearField(limit)


def _chosen(job: Job, request: pb.RetryJobsRequest) -> bool:
    return job.state in _BAD and _reason_chosen(job.reason, request)


def _reason_chosen(reason: int, request: pb.RetryJobsRequest) -> bool:
    return not request.reasons or reason in request.reasons


def retried(drafts: Iterable[Draft]) -> int:
    """How many jobs are tried again, children counted one by one."""
    return sum(len(draft.blueprint) for draft in drafts)
