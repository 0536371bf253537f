"""Gets attempts ready: chooses backends, finds inputs, asks for grants, writes manifests. Changes no row."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import aiofiles
import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.api.storage.v1.grant_pb2 import Upload
from khomas.api.storage.v1.storage_service_pb2 import Download
from khomas.kit.errors import DomainError
from khomas.kit.expressions import Scalar
from khomas.kit.ids import new_uids
from khomas.scheduler.backends.interface import SubmitItem
from khomas.scheduler.engine.candidates import Candidate
from khomas.scheduler.engine.desk import Desk
from khomas.scheduler.engine.produced import produced_files
from khomas.scheduler.engine.recalling import Recalling
from khomas.scheduler.intake.blueprint import Blueprint, Identity, WantedFile
from khomas.scheduler.lifecycle.retry import Avoided, avoided
from khomas.scheduler.manifest import Payload, is_sandbox, manifest, most_files, needs_upload
from khomas.scheduler.placement.locality import Local, inputs_of
from khomas.scheduler.placement.matching import Match, Needs, Offer
from khomas.scheduler.placement.placing import Placing
from khomas.scheduler.placement.robot import ROBOT
from khomas.scheduler.records import Attempt, Job, ReasonCode
from khomas.scheduler.splitters import Child
from khomas.scheduler.store.changes import read_attempts

log = logging.getLogger(__name__)

_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
_AGAIN = timedelta(seconds=5)
_NO_MATCH_AGAIN = timedelta(seconds=10)
# They are woken when a backend is opened.
_CLOSED_AGAIN = timedelta(minutes=10)
# They are called when a backend has room.
_FULL_AGAIN = timedelta(minutes=10)
_QUOTA_AGAIN = timedelta(seconds=15)
# They are woken when a credential changes.
_CREDENTIAL_AGAIN = timedelta(minutes=10)
_INPUT_AGAIN = timedelta(seconds=30)
# They are woken when a file has come; until then the figures in their sentence age.
_TAPE_AGAIN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An attempt that is ready to be handed over."""

    candidate: Candidate
    attempt: Attempt
    item: SubmitItem


@dataclass(frozen=True, slots=True)
class Refused:
    """A job that cannot be handed over now: it waits, or it FAILS."""

    candidate: Candidate
    reason: ReasonCode
    message: str
    # None = never.
    again: timedelta | None = None
    # It waits until one of these backends has room.
    full: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Plan:
    """A candidate on its way."""

    candidate: Candidate
    site: str
    # Empty = the system's own choice.
    queue: str
    attempt_uid: str
    number: int
    child: Child
    values: Mapping[str, Scalar]
    command: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    inputs: list[WantedFile] = field(default_factory=list)
    upload: Upload | None = None


class Preparation:
    """Prepares many attempts with a constant number of calls."""

    def __init__(self, desk: Desk, recalling: Recalling) -> None:
        self._desk = desk
        self._recalling = recalling

    async def prepare(
        self, connection: AsyncConnection, candidates: Sequence[Candidate], now: datetime
    ) -> tuple[list[Prepared], list[Refused]]:
        """Prepare new attempts of these jobs."""
        refused: list[Refused] = []
        local = await self._local(candidates)
        failed = await _failed(connection, candidates)
        plans = self._placed(candidates, refused, local, failed)
        return await self._ready(connection, plans, refused, now, {}, failed)

    async def _local(self, candidates: Sequence[Candidate]) -> dict[str, Local]:
        """Where the inputs lie, for jobs that it makes a difference to."""
        one_place = len({site.settings.site for site in self._desk.sites}) < 2
        inputs = {
            one.job.uid: inputs_of(one.blueprint, one.job.index, one.job.parent or one.job.uid)
            for one in candidates
            if one.blueprint.spec.inputs and not (one_place and not one.blueprint.spec.placement.require_data_local)
        }
        return await self._desk.locality.shares({job: names for job, names in inputs.items() if names})

    async def prepare_again(
        self, connection: AsyncConnection, candidates: Sequence[Candidate], attempts: Sequence[Attempt], now: datetime
    ) -> tuple[list[Prepared], list[Refused]]:
        """Prepare attempts once more that did not arrive: with the same token, at the same backend."""
        refused: list[Refused] = []
        known = {attempt.uid: attempt for attempt in attempts}
        plans = [
            _Plan(one, attempt.backend, attempt.queue, attempt.uid, attempt.number, *_special(one, attempt.number))
            for one, attempt in zip(candidates, attempts, strict=True)
        ]
        return await self._ready(connection, plans, refused, now, known, await _failed(connection, candidates))

    async def _ready(
        self,
        connection: AsyncConnection,
        plans: list[_Plan],
        refused: list[Refused],
        now: datetime,
        known: Mapping[str, Attempt],
        failed: Mapping[str, Avoided],
    ) -> tuple[list[Prepared], list[Refused]]:
        plans = await self._filled(connection, plans, refused)
        try:
            downloads = await self._downloads(plans)
            plans = await self._on_disk(plans, downloads, refused)
            plans = _with_inputs(plans, downloads, refused)
            await self._open_uploads(plans)
        except grpc.aio.AioRpcError as error:
            return [], [*refused, *(_not_answered(plan.candidate, error) for plan in plans)]
        await self._inline(plans)
        prepared = [
            self._prepared(plan, downloads, now, known.get(plan.attempt_uid), failed.get(plan.candidate.job.uid))
            for plan in plans
        ]
        return prepared, refused

    def _placed(
        self,
        candidates: Sequence[Candidate],
        refused: list[Refused],
        local: Mapping[str, Local],
        failed: Mapping[str, Avoided],
    ) -> list[_Plan]:
        """Choose a backend for each, filling them evenly."""
        placing = Placing(self._desk.sites.offers(), self._desk.sites.ranking, self._desk.sites.lack)
        uids = iter(new_uids(len(candidates)))
        plans = []
        for one in candidates:
            chosen = _choose(one, placing, local.get(one.job.uid), failed.get(one.job.uid, Avoided()).backends)
            if isinstance(chosen, Refused):
                refused.append(chosen)
                continue
            site, queue = chosen
            placing.took(site)
            number = one.job.attempt + 1
            try:
                plans.append(_Plan(one, site, queue, next(uids), number, *_special(one, number)))
            except DomainError as error:
                refused.append(Refused(one, Reason.REASON_APP_CHECK_FAILED, error.message))
        return plans

    async def _filled(self, connection: AsyncConnection, plans: Sequence[_Plan], refused: list[Refused]) -> list[_Plan]:
        """Fill in commands and names."""
        produced: dict[tuple[str, str], Mapping[int, Sequence[WantedFile]]] = {}
        good = []
        for plan in plans:
            job, blueprint = plan.candidate.job, plan.candidate.blueprint
            key = (job.spec, job.merges)
            if key not in produced:
                produced[key] = await produced_files(connection, self._desk, blueprint.spec, job)
            try:
                plan.command = blueprint.command(plan.child, plan.values)
                plan.env = blueprint.environment(plan.child, plan.values)
                plan.inputs = blueprint.inputs(plan.child, plan.values, produced[key])
            except DomainError as error:
                refused.append(Refused(plan.candidate, Reason.REASON_APP_CHECK_FAILED, error.message))
                continue
            plan.inputs += produced[key].get(-1, ())
            good.append(plan)
        return good

    async def _downloads(self, plans: Sequence[_Plan]) -> dict[str, Download]:
        """Ask for the right to read all files of all attempts."""
        by_place: dict[str, dict[str, None]] = {}
        for plan in plans:
            place = self._desk.sites[plan.site].settings.site
            names = by_place.setdefault(place, {})
            names |= dict.fromkeys(one.lfn for one in plan.inputs if one.lfn)
        found: dict[str, Download] = {}
        for place, names in by_place.items():
            if names:
                found |= await self._desk.storage.downloads(names, place)
        return found

    async def _on_disk(
        self, plans: list[_Plan], downloads: Mapping[str, Download], refused: list[Refused]
    ) -> list[_Plan]:
        """Those with no input on tape alone; what the others need is recalled for all of them at once."""
        inputs = {plan.candidate.job.uid: [one.lfn for one in plan.inputs if one.lfn] for plan in plans}
        waits = await self._recalling.waits(inputs, downloads)
        reason = Reason.REASON_WAIT_STAGE_FROM_TAPE
        refused += [
            Refused(plan.candidate, reason, waits[plan.candidate.job.uid], _TAPE_AGAIN)
            for plan in plans
            if plan.candidate.job.uid in waits
        ]
        return [plan for plan in plans if plan.candidate.job.uid not in waits]

    async def _open_uploads(self, plans: Sequence[_Plan]) -> None:
        """Ask for the right to write the outputs of all attempts."""
        writing = [plan for plan in plans if needs_upload(plan.candidate.blueprint.spec)]
        if not writing:
            return
        opened = await self._desk.storage.uploads([_upload(plan) for plan in writing])
        for plan, upload in zip(writing, opened, strict=True):
            plan.upload = upload

    async def _inline(self, plans: Iterable[_Plan]) -> None:
        """Say where the files of sandboxes lie; where the node does not see our disk they go along."""
        for plan in plans:
            shared = self._desk.sites[plan.site].backend.capabilities.shared_folder
            for number, one in enumerate(plan.inputs):
                local = self._desk.sandboxes.path(one.sha256) if one.sha256 else one.local
                if local is None:
                    continue
                if shared:
                    plan.inputs[number] = replace(one, local=local)
                    continue
                async with aiofiles.open(local, "rb") as stream:
                    plan.inputs[number] = replace(one, content=await stream.read(), local=None)

    def _prepared(
        self,
        plan: _Plan,
        downloads: Mapping[str, Download],
        now: datetime,
        known: Attempt | None,
        failed: Avoided | None,
    ) -> Prepared:
        job, spec = plan.candidate.job, plan.candidate.blueprint.spec
        grant = plan.upload.grant if plan.upload is not None else None
        payload = Payload(plan.command, plan.env, plan.inputs, downloads, grant)
        written = manifest(job, spec, plan.attempt_uid, plan.number, payload)
        attempt = known or _attempt(plan, now)
        attempt = attempt._replace(upload=plan.upload.name if plan.upload else "", script_sha256=_digest(written))
        able = self._desk.sites[plan.site].backend.capabilities
        native = dict(spec.placement.native[able.kind]) if able.kind in spec.placement.native else {}
        nodes = failed.nodes.get(plan.site, ()) if failed is not None and able.avoids_nodes else ()
        return Prepared(plan.candidate, attempt, SubmitItem(attempt.token, written, plan.queue, native, nodes))


async def _failed(connection: AsyncConnection, candidates: Iterable[Candidate]) -> dict[str, Avoided]:
    """Where jobs failed before, of those whose policies avoid that."""
    policies = {one.job.uid: one.blueprint.spec.retry for one in candidates if one.job.attempt}
    wanted = [uid for uid, policy in policies.items() if policy.avoid_failed_nodes or policy.avoid_failed_backend]
    attempts = await read_attempts(connection, wanted) if wanted else {}
    return {uid: avoided(policies[uid], some) for uid, some in attempts.items()}


def _special(one: Candidate, number: int) -> tuple[Child, dict[str, Scalar]]:
    """What is special of a child, and the values of its keys. Raises `ExpressionInvalid`."""
    blueprint, job = one.blueprint, one.job
    child = blueprint.child(job.index)
    return child, blueprint.values(child, Identity(job.parent or job.uid, job.index, number))


def _choose(one: Candidate, placing: Placing, local: Local | None, avoid: frozenset[str]) -> tuple[str, str] | Refused:
    """Backend and queue."""
    if one.over_quota:
        return Refused(one, Reason.REASON_WAIT_QUOTA, one.over_quota, _QUOTA_AGAIN)
    if one.throttled:
        why = "its array has as many running as its max_running allows"
        return Refused(one, Reason.REASON_WAIT_THROTTLED, why, timedelta(seconds=1))
    spec, job = one.blueprint.spec, one.job
    probe = job.owner == ROBOT
    needs = Needs.of(spec, job.memory_factor, job.wall_factor, dict(local) if local else None, probe, avoid)
    key = (one.blueprint.place_needs, job.memory_factor, job.wall_factor, local, probe, avoid)
    group = placing.group(key, spec, needs)
    if not group.match.fitting:
        return _nowhere(one, group.match)
    best = placing.best(group)
    if best is None:
        why = "; ".join(f"{name}: {no.said}" for name, no in group.lacks.items())
        return Refused(one, Reason.REASON_WAIT_CREDENTIAL, why, _CREDENTIAL_AGAIN)
    offer, has_room = best
    return (offer.name, group.match.queues[offer.name]) if has_room else _full(one, offer, group.good)


def _nowhere(one: Candidate, found: Match) -> Refused:
    if found.closed:
        why = "; ".join(f"{name} is {closed}" for name, closed in found.closed.items())
        return Refused(one, Reason.REASON_WAIT_BACKEND, why, _CLOSED_AGAIN)
    why = "; ".join(f"{name}: {reason}" for name, reason in found.excluded.items())
    return Refused(one, Reason.REASON_WAIT_NO_MATCH, f"no backend fits: {why}", _NO_MATCH_AGAIN)


def _full(one: Candidate, best: Offer, good: frozenset[str]) -> Refused:
    if best.trouble:
        why = f"{best.name} does not answer: {best.trouble}"
        return Refused(one, Reason.REASON_WAIT_BACKEND, why, _FULL_AGAIN, good)
    why = f"{best.name} has as many jobs as it may, {best.max_jobs}"
    return Refused(one, Reason.REASON_WAIT_RESOURCES, why, _FULL_AGAIN, good)


def _with_inputs(plans: Iterable[_Plan], downloads: Mapping[str, Download], refused: list[Refused]) -> list[_Plan]:
    """Those whose inputs can all be read."""
    good = []
    for plan in plans:
        bad = next((one.lfn for one in plan.inputs if one.lfn and not downloads[one.lfn].grants), None)
        if bad is None:
            good.append(plan)
            continue
        error = downloads[bad].error
        if error.code == grpc.StatusCode.NOT_FOUND.value[0]:
            message = f"the input {bad} is not in the catalogue"
            refused.append(Refused(plan.candidate, Reason.REASON_DATA_INPUT_MISSING, message))
        else:
            message = f"the input {bad} cannot be read now: {error.message}"
            refused.append(Refused(plan.candidate, Reason.REASON_WAIT_INPUT_DATA, message, _INPUT_AGAIN))
    return good


def _not_answered(one: Candidate, error: grpc.aio.AioRpcError) -> Refused:
    log.warning("storage.refused", extra={"code": error.code().name, "job": one.job.uid})
    if error.code() in _PASSING:
        return Refused(one, Reason.REASON_WAIT_INPUT_DATA, "the storage service does not answer", _AGAIN)
    return Refused(one, Reason.REASON_DATA_STAGE_OUT, f"the storage refused: {error.details()}")


def _upload(plan: _Plan) -> Upload:
    outputs = [output for output in plan.candidate.blueprint.spec.outputs if not is_sandbox(output)]
    elements = dict.fromkeys(element for output in outputs for element in output.storage_elements)
    return Upload(storage_elements=elements, max_files=most_files(outputs), origin=plan.attempt_uid)


def _attempt(plan: _Plan, now: datetime) -> Attempt:
    return Attempt(
        uid=plan.attempt_uid,
        job=plan.candidate.job.uid,
        number=plan.number,
        backend=plan.site,
        native_id="",
        queue=plan.queue,
        node="",
        state=JobState.JOB_STATE_SUBMITTING,
        reason=Reason.REASON_UNSPECIFIED,
        message="",
        native_state="",
        exit_code=None,
        signal=None,
        usage={},
        outputs=[],
        record={},
        upload="",
        inputs=[one.lfn for one in plan.inputs if one.lfn],
        script_sha256="",
        create_time=now,
    )


def _digest(written: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def rendered(blueprint: Blueprint, job: Job, number: int = 1) -> dict[str, Any]:
    """The manifest as far as it is known before the submission: inputs of the catalogue have no address yet."""
    child = blueprint.child(job.index)
    values = blueprint.values(child, Identity(job.parent or job.uid, job.index, number))
    inputs = [one for one in blueprint.inputs(child, values, {}) if not one.sha256]
    downloads = {one.lfn: Download(name=one.lfn, size_bytes=0) for one in inputs if one.lfn}
    payload = Payload(blueprint.command(child, values), blueprint.environment(child, values), inputs, downloads)
    return manifest(job, blueprint.spec, job.uid.replace("/", "-"), number, payload)
