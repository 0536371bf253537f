"""Takes jobs in: checks everything that can be checked, resolves what must not change, makes the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job as WireJob
from khomas.api.scheduler.v1.job_spec_pb2 import Dependency as WireDependency
from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.api.scheduler.v1.state_pb2 import DesiredState, JobState, Reason
from khomas.kit.auth.principal import Principal
from khomas.kit.boundary.call import current_call
from khomas.kit.errors import FieldInvalid
from khomas.kit.ids import new_uids
from khomas.kit.telemetry.trace import current_traceparent
from khomas.scheduler.intake import rights
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.intake.freezing import check_files, freeze, frozen_names, wanted_names
from khomas.scheduler.intake.frozen import Frozen
from khomas.scheduler.intake.mergers import merger_spec
from khomas.scheduler.intake.specs import check_size, check_spec, try_out
from khomas.scheduler.lifecycle.slow import SlowPolicy
from khomas.scheduler.lifecycle.waiting import why_waiting
from khomas.scheduler.placement.locality import Locality
from khomas.scheduler.placement.matching import Match, Offer, check_placement
from khomas.scheduler.records import FINAL, Dependency, Job

_NO_REASON = Reason.REASON_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Draft:
    """A job that is not in the database yet."""

    job: Job
    blueprint: Blueprint
    dependencies: Sequence[Dependency]

    @property
    def sandboxes(self) -> list[str]:
        """Contents that it reads."""
        inputs = self.blueprint.spec.inputs
        return [one.sandbox.sha256 for one in inputs if one.WhichOneof("source") == "sandbox"]


@dataclass(frozen=True, slots=True)
class Intake:
    """Drafts of one request."""

    jobs: Sequence[Draft]
    mergers: Sequence[Draft]
    warnings: Sequence[str]

    @property
    def drafts(self) -> list[Draft]:
        """All of them."""
        return [*self.jobs, *self.mergers]


async def take_in(
    request: pb.BatchCreateJobsRequest, principal: Principal, locality: Locality, offers: Sequence[Offer]
) -> Intake:
    """Check the jobs of a request and draft them, with the mergers of arrays. Changes nothing."""
    now = datetime.now(UTC)
    uids = new_uids(len(request.jobs) + sum(len(job.spec.mergers) for job in request.jobs))
    jobs = [
        await _draft(wire, uid, f"jobs[{number}].spec", principal, locality, now)
        for number, (wire, uid) in enumerate(zip(request.jobs, uids, strict=False))
    ]
    rest = iter(uids[len(jobs) :])
    mergers = [
        await _merger(array, position, next(rest), f"jobs[{number}].spec.mergers[{position}]", principal, locality)
        for number, array in enumerate(jobs)
        for position in range(len(array.blueprint.spec.mergers))
    ]
    drafts = [*jobs, *mergers]
    # Jobs of one request are mostly alike in this.
    places = {_where(draft.blueprint.spec): draft.blueprint.spec for draft in drafts}
    fits = {key: check_placement(spec, offers) for key, spec in places.items()}
    intake = Intake(jobs, mergers, _warnings(jobs, fits))
    for draft in drafts:
        check_rights(principal, draft.blueprint)
    await check_files(locality.catalog, [draft.blueprint for draft in intake.drafts])
    return intake


def _where(spec: JobSpec) -> tuple[bytes, ...]:
    """All that the choice of a place depends on."""
    parts = (spec.placement, spec.resources, spec.environment)
    return tuple(part.SerializeToString(deterministic=True) for part in parts)


def check_rights(principal: Principal, blueprint: Blueprint) -> None:
    """Raise `CapabilityMissing` unless the caller may read and write what the jobs do."""
    rights.check_writes(principal, blueprint.spec)
    rights.check_reads(principal, [*wanted_names(blueprint), *frozen_names(blueprint.frozen)])


async def _draft(wire: WireJob, uid: str, field: str, principal: Principal, locality: Locality, now: datetime) -> Draft:
    spec = wire.spec
    check_spec(spec, field)
    blueprint = Blueprint(spec, await _frozen(locality, spec))
    total = check_size(blueprint)
    try_out(blueprint, uid, field)
    call = current_call()
    origin = wire.origin or (call.origin if call else "")
    dependencies = _dependencies(spec, uid)
    job = new_job(uid, uid, blueprint, total, principal.subject, origin, now, current_traceparent())
    return Draft(job, blueprint, dependencies)


async def _frozen(locality: Locality, spec: JobSpec) -> Frozen:
    if all(one.WhichOneof("source") in ("sandbox", "inline_content", "job_outputs") for one in spec.inputs):
        return Frozen()
    return await freeze(locality.catalog, spec, locality)


async def _merger(array: Draft, position: int, uid: str, field: str, principal: Principal, locality: Locality) -> Draft:
    merger = array.blueprint.spec.mergers[position]
    spec = merger_spec(array.blueprint.spec, merger, array.job.name, field)
    wire = WireJob(spec=spec, origin=array.job.origin or array.job.uid)
    draft = await _draft(wire, uid, field, principal, locality, array.job.create_time)
    on_array = Dependency(uid, array.job.uid, WireDependency.CONDITION_SUCCEEDED, merger.min_fraction)
    others = [one for one in draft.dependencies if one.target != array.job.uid]
    return replace(draft, job=draft.job._replace(merges=array.job.uid), dependencies=[on_array, *others])


# What all jobs have in common that were just submitted.
FRESH: Mapping[str, Any] = {
    "parent": "",
    "index": 0,
    "state": JobState.JOB_STATE_PENDING,
    "desired": DesiredState.DESIRED_STATE_RUN,
    "attempt": 0,
    "counted": 0,
    "version": 1,
    "application_status": "",
    "next_attempt_time": None,
    "memory_factor": 1.0,
    "wall_factor": 1.0,
    "backend": "",
    "parameters": {},
    "end_time": None,
    "made": 0,
    "rest_state": JobState.JOB_STATE_PENDING,
}


def new_job(
    uid: str,
    spec_uid: str,
    blueprint: Blueprint,
    total: int,
    owner: str,
    origin: str,
    now: datetime,
    traceparent: str = "",
) -> Job:
    """The row of a new job or array, waiting for its turn."""
    spec = blueprint.spec
    start_after = spec.limits.start_after.ToDatetime(UTC) if spec.limits.HasField("start_after") else None
    reason, message, due = why_waiting(now, FRESH["desired"], 0, start_after)
    is_array = spec.HasField("splitter")
    return Job(
        uid=uid,
        spec=spec_uid,
        reason=reason,
        message=message,
        since=now,
        due=due,
        start_after=start_after,
        deadline=_deadline(spec),
        waits=0,
        priority=spec.priority,
        owner=owner,
        origin=origin,
        display_name=spec.display_name,
        tags=dict(spec.tags),
        merges="",
        create_time=now,
        update_time=now,
        total=total if is_array else 0,
        rest_reason=reason if is_array else _NO_REASON,
        max_running=spec.splitter.max_running,
        share=spec.share,
        retain_s=spec.retain_after_end.seconds if spec.HasField("retain_after_end") else None,
        traceparent=traceparent,
        **FRESH,
    )


def child_job(array: Job, index: int, parameters: Mapping[str, str]) -> Job:
    """The row of a child that has its turn, as all unmade children are."""
    return array._replace(
        uid=f"{array.uid}/{index}",
        parent=array.uid,
        index=index,
        state=array.rest_state,
        reason=array.rest_reason,
        message="" if array.rest_state == JobState.JOB_STATE_PENDING else array.message,
        version=1,
        parameters=dict(parameters),
        end_time=array.update_time if array.rest_state in FINAL else None,
        total=0,
        made=0,
        max_running=0,
    )


def _dependencies(spec: JobSpec, uid: str) -> list[Dependency]:
    found = {
        target: Dependency(uid, target, one.condition or WireDependency.CONDITION_SUCCEEDED, one.min_fraction)
        for one in spec.dependencies
        if (target := one.job.removeprefix("jobs/"))
    }
    for one in spec.inputs:
        if one.WhichOneof("source") == "job_outputs":
            target = one.job_outputs.removeprefix("jobs/")
            found.setdefault(target, Dependency(uid, target, WireDependency.CONDITION_SUCCEEDED, 0.0))
    return list(found.values())


def _deadline(spec: JobSpec) -> datetime | None:
    limits = spec.limits
    given = [
        getattr(limits, name).ToDatetime(UTC) for name in ("start_before", "finish_before") if limits.HasField(name)
    ]
    return min(given, default=None)


def _warnings(drafts: Sequence[Draft], fits: Mapping[tuple[bytes, ...], Match]) -> list[str]:
    warnings = []
    for number, draft in enumerate(drafts):
        cpu = draft.blueprint.spec.resources.cpu_milli
        if cpu % 1000:
            warnings.append(f"jobs[{number}]: {cpu / 1000:g} cores become {-(-cpu // 1000)} on systems of whole cores.")
        if draft.blueprint.spec.retry.avoid_failed_nodes:
            blind = [one.name for one in fits[_where(draft.blueprint.spec)].fitting if not one.avoids_nodes]
            if blind:
                warnings.append(f"jobs[{number}]: {', '.join(blind)} cannot avoid failed nodes.")
        if SlowPolicy.of(draft.blueprint.spec) is not None:
            blind = [one.name for one in fits[_where(draft.blueprint.spec)].fitting if not one.live_usage]
            if blind:
                warnings.append(f"jobs[{number}]: {', '.join(blind)} cannot tell what running jobs use: none is slow.")
        if draft.job.deadline and draft.job.deadline <= draft.job.create_time:
            raise FieldInvalid.of(f"jobs[{number}].spec.limits", "start_before and finish_before are in the past")
    return warnings
