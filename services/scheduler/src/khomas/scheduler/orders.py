"""The calls that change something, each in one transaction that a repeated request finds done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.kit.boundary.call import current_principal
from khomas.kit.database import Database, insert_many
from khomas.kit.idempotency import Asked, Once, OnceTogether
from khomas.scheduler import tables
from khomas.scheduler.answers.slow_jobs import SlowJobs
from khomas.scheduler.intake.blueprint import Blueprint
from khomas.scheduler.intake.drafts import Draft, Intake, check_rights, take_in
from khomas.scheduler.intake.plans import plan
from khomas.scheduler.intake.profiles import Used, filled, kind_of_jobs
from khomas.scheduler.intake.sandboxes import Sandboxes
from khomas.scheduler.placement.locality import Locality
from khomas.scheduler.placement.matching import Needs, match
from khomas.scheduler.placement.sites import Sites
from khomas.scheduler.signals import Signal
from khomas.scheduler.store.accounting import Accounting
from khomas.scheduler.store.blueprints import Blueprints
from khomas.scheduler.store.control import Control
from khomas.scheduler.store.profiles import read_uses
from khomas.scheduler.store.retrying import Retrying
from khomas.scheduler.store.submission import Submission

# Submissions of at most so many jobs share a transaction with others.
_SMALL = 100


@dataclass(slots=True)
class Orders:
    """Carries out mutating calls, and wakes the engine."""

    database: Database
    once: Once
    locality: Locality
    sites: Sites
    submission: Submission
    control: Control
    retrying: Retrying
    slow_jobs: SlowJobs
    accounting: Accounting
    sandboxes: Sandboxes
    blueprints: Blueprints
    due: Signal
    cancelling: Signal
    _together: OnceTogether[Intake, pb.BatchCreateJobsResponse] = field(init=False)

    def __post_init__(self) -> None:
        self._together = OnceTogether(self.once, pb.BatchCreateJobsResponse, self._submitted)

    async def submit(self, request: pb.BatchCreateJobsRequest) -> pb.BatchCreateJobsResponse:
        """Take jobs in, or say what would happen to them."""
        try:
            intake = await self._taken_in(request)
        except Exception as error:
            # What was fine when it was asked first may be so no more: a deadline, a dataset.
            if request.validate_only or not request.request_id:
                raise
            before = await self.once.before(Asked.of(request), pb.BatchCreateJobsResponse, error)
            if before is None:
                raise
            return before
        if request.validate_only:
            async with self.database.read() as connection:
                await self.accounting.check(connection, intake.drafts)
            plans = [plan(draft, self.sites, request.render_scripts) for draft in intake.jobs]
            return pb.BatchCreateJobsResponse(warnings=intake.warnings, plans=plans)

        if len(intake.drafts) <= _SMALL:
            answer = await self._together(request, intake)
        else:

            async def work(connection: AsyncConnection) -> pb.BatchCreateJobsResponse:
                return (await self._submitted(connection, [intake]))[0]

            answer = await self.once(request, pb.BatchCreateJobsResponse, work)
        if any(draft.job.due is not None and draft.job.due <= draft.job.create_time for draft in intake.drafts):
            self.due.set()
        return answer

    async def _taken_in(self, request: pb.BatchCreateJobsRequest) -> Intake:
        """Check the jobs, with their needs from history, and charge them to their accounts, if there are any."""
        principal = current_principal()
        intake = await self._estimated(await take_in(request, principal, self.locality, self.sites.offers()))
        drafts = self.accounting.charged(intake.drafts, principal)
        return replace(intake, jobs=drafts[: len(intake.jobs)], mergers=drafts[len(intake.jobs) :])

    async def _estimated(self, intake: Intake) -> Intake:
        """Fill the needs of jobs in from history that want it so."""
        kinds = {kind_of_jobs(one.blueprint.spec) for one in intake.drafts if one.blueprint.spec.resources.automatic}
        if not kinds:
            return intake
        async with self.database.read() as connection:
            history = await read_uses(connection, kinds)
        drafts = [self._filled(draft, history) for draft in intake.drafts]
        return replace(intake, jobs=drafts[: len(intake.jobs)], mergers=drafts[len(intake.jobs) :])

    def _filled(self, draft: Draft, history: Mapping[str, Sequence[Used]]) -> Draft:
        spec = draft.blueprint.spec
        if not spec.resources.automatic:
            return draft
        found = match(spec, Needs.of(spec), self.sites.offers(), self.sites.ranking)
        best = found.fitting[0].name if found.fitting else ""
        made = filled(spec, history[kind_of_jobs(spec)], best)
        return replace(draft, blueprint=Blueprint(made, draft.blueprint.frozen))

    async def _submitted(
        self, connection: AsyncConnection, intakes: Sequence[Intake]
    ) -> list[pb.BatchCreateJobsResponse]:
        drafts = [draft for intake in intakes for draft in intake.drafts]
        await self.accounting.check(connection, drafts)
        jobs = await self.submission.submit(connection, drafts)
        for draft in drafts:
            self.blueprints.keep(draft.job.uid, draft.blueprint)
        return [
            pb.BatchCreateJobsResponse(
                jobs=[jobs[draft.job.uid] for draft in intake.jobs],
                mergers=[jobs[draft.job.uid] for draft in intake.mergers],
                warnings=intake.warnings,
            )
            for intake in intakes
        ]

    async def cancel(self, request: pb.BatchCancelJobsRequest) -> pb.BatchCancelJobsResponse:
        """Want jobs to end."""

        async def work(connection: AsyncConnection) -> pb.BatchCancelJobsResponse:
            return await self.control.cancel(connection, request.names, request.reason)

        answer = await self.once(request, pb.BatchCancelJobsResponse, work)
        self.cancelling.set()
        self.due.set()
        return answer

    async def hold(self, request: pb.BatchHoldJobsRequest) -> pb.BatchHoldJobsResponse:
        """Keep jobs from starting."""

        async def work(connection: AsyncConnection) -> pb.BatchHoldJobsResponse:
            return await self.control.hold(connection, request.names)

        return await self.once(request, pb.BatchHoldJobsResponse, work)

    async def release(self, request: pb.BatchReleaseJobsRequest) -> pb.BatchReleaseJobsResponse:
        """Let held jobs go on."""

        async def work(connection: AsyncConnection) -> pb.BatchReleaseJobsResponse:
            return await self.control.release(connection, request.names)

        answer = await self.once(request, pb.BatchReleaseJobsResponse, work)
        self.due.set()
        return answer

    async def retry(self, request: pb.RetryJobsRequest) -> pb.RetryJobsResponse:
        """Make new jobs of those that ended badly."""
        principal = current_principal()

        async def work(connection: AsyncConnection) -> pb.RetryJobsResponse:
            retried = await self.retrying.drafts(connection, request, principal.subject)
            for draft in retried.drafts:
                check_rights(principal, draft.blueprint)
            charged = self.accounting.charged(retried.drafts, principal)
            await self.accounting.check(connection, charged)
            jobs = await self.submission.submit(connection, charged)
            if request.workflow:
                await insert_many(connection, tables.rescue, retried.rescues())
            return pb.RetryJobsResponse(jobs=jobs.values(), retried=retried.jobs)

        answer = await self.once(request, pb.RetryJobsResponse, work)
        self.due.set()
        return answer

    async def keep_slow(self, request: pb.KeepSlowJobsRequest) -> pb.KeepSlowJobsResponse:
        """Let slow jobs run on."""

        async def work(connection: AsyncConnection) -> pb.KeepSlowJobsResponse:
            return await self.slow_jobs.keep(connection, request.names)

        return await self.once(request, pb.KeepSlowJobsResponse, work)

    async def find_missing(self, request: pb.FindMissingSandboxesRequest) -> pb.FindMissingSandboxesResponse:
        """Say which contents are not stored."""
        async with self.database.read() as connection:
            return pb.FindMissingSandboxesResponse(sha256=await self.sandboxes.missing(connection, request.sha256))

    async def create_sandboxes(self, request: pb.BatchCreateSandboxesRequest) -> pb.BatchCreateSandboxesResponse:
        """Store contents."""
        await self.sandboxes.write(request.sandboxes)

        async def work(connection: AsyncConnection) -> pb.BatchCreateSandboxesResponse:
            return pb.BatchCreateSandboxesResponse(created=await self.sandboxes.note(connection, request.sandboxes))

        return await self.once(request, pb.BatchCreateSandboxesResponse, work)
