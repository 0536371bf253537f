"""Snakemake runs its jobs through Khomas: `snakemake --executor khomas`."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from uuid import uuid4

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase, SharedFSUsage

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.client import Client
from khomas.client.errors import KhomasError
from khomas.client.jobs import is_final, state_of
from snakemake_executor_plugin_khomas.explaining import failure
from snakemake_executor_plugin_khomas.specs import Surroundings, spec_of

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    # They go into the environment of the job, where no list of processes shows them.
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    pass_group_args=True,
    init_seconds_before_status_checks=1,
)


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]  # Snakemake ships no types
    """What the command line sets: `--khomas-backend`."""

    # Snakemake reads the type at run time, and knows this way to write it only.
    backend: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Backend of rules without the resource khomas_backend; several are separated by commas. "
            "Without it Khomas chooses.",
            "env_var": False,
            "required": False,
        },
    )


class Executor(RemoteExecutor):  # type: ignore[misc]  # Snakemake ships no types
    """Hands jobs that are ready together over in one call, and looks at all of them in one."""

    def __post_init__(self) -> None:
        """Connect; endpoint and token come from the environment, as for `khomas`."""
        self._client = Client()
        self._workflow_id = str(uuid4())
        # By uid of the job. Snakemake's own list is empty while it looks at the jobs.
        self._open: dict[str, SubmittedJobInfo] = {}
        try:
            self._client.run(self._client.asynchronous.jobs.count("state", _of_workflow(self._workflow_id)))
        except KhomasError as error:
            raise WorkflowError(f"Khomas cannot be used: {error.message}") from None
        # Snakemake prints messages as they are, without their arguments.
        told = f"Jobs of this run: khomas ls --tag snakemake_workflow={self._workflow_id}"
        self.logger.info(told)

    def run_jobs(self, jobs: Sequence[JobExecutorInterface]) -> None:
        """Hand over what is ready."""
        for job in jobs:
            self.run_job_pre(job)
        self._submit(jobs)

    def run_job(self, job: JobExecutorInterface) -> None:
        """Hand one job over."""
        self._submit([job])

    def additional_general_args(self) -> str:
        """Keep the Snakemake inside a job from trying again by itself.

        It gets `--retries 0`, but a rule's own `retries` would win; only those of preemptible rules come before it.
        """
        return "--preemptible-rules --preemptible-retries 0"

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs that ended; yield the others."""
        seen = await self._look(active_jobs) if active_jobs else {}
        for info in active_jobs:
            job = seen.get(info.external_jobid) if seen is not None else None
            if seen is None or (job is not None and not is_final(job)):
                yield info
                continue
            self._open.pop(info.external_jobid, None)
            if job is None:
                self.report_job_error(info, msg="Khomas no longer keeps this job, so how it ended is not known.\n")
            elif state_of(job) == "SUCCEEDED":
                self.report_job_success(info)
            else:
                self.report_job_error(info, msg=await asyncio.to_thread(failure, self._client, job))

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """End everything of this run that is not over, in one call."""
        if not self._open:
            return
        try:
            self._client.run(self._client.asynchronous.jobs.cancel(list(self._open), "Snakemake was interrupted"))
        except KhomasError as error:
            theirs = f"$(khomas ls -q --tag snakemake_workflow={self._workflow_id})"
            told = f"The jobs of this run could not be cancelled ({error.message}); do it by: khomas cancel {theirs}"
            self.logger.warning(told)

    def shutdown(self) -> None:
        """Close the connection after the last look."""
        super().shutdown()
        self._client.close()

    async def _look(self, active: Sequence[SubmittedJobInfo]) -> dict[str, Any] | None:
        """The jobs by uid, in one call; None when Khomas does not answer now."""
        try:
            async with self.status_rate_limiter:
                jobs = await asyncio.to_thread(self._ask, [info.external_jobid for info in active])
        except KhomasError as error:
            told = f"Khomas could not be asked for the jobs, it is tried again: {error.message}"
            self.logger.warning(told)
            return None
        return {job.uid: job for job in jobs}

    def _ask(self, uids: Sequence[str]) -> list[Any]:
        """Those of the jobs that there are."""
        jobs = self._client.asynchronous.jobs
        try:
            return self._client.run(jobs.get_many(uids))
        except KhomasError as error:
            if error.reason != "JOB_NOT_FOUND":
                raise
            return self._client.run(jobs.find(_of_workflow(self._workflow_id)))

    def _submit(self, jobs: Sequence[JobExecutorInterface]) -> None:
        try:
            specs = [spec_of(job, self.format_job_exec(job), self._surroundings()) for job in jobs]
            made = self._client.run(self._client.asynchronous.jobs.submit(specs)).jobs
        except (KhomasError, ValueError) as error:
            self._refused(jobs, error)
            return
        for job, answer in zip(jobs, made, strict=True):
            self._started(job, answer)

    def _started(self, job: JobExecutorInterface, made: Job) -> None:
        info = SubmittedJobInfo(job, external_jobid=made.uid)
        self._open[made.uid] = info
        self.report_job_submission(info)

    def _refused(self, jobs: Sequence[JobExecutorInterface], error: Exception) -> None:
        """One job that is refused is told as its own error; of many, the others go on."""
        if len(jobs) == 1:
            self.report_job_error(SubmittedJobInfo(jobs[0]), msg=f"Khomas did not take it: {error}\n")
        else:
            for job in jobs:
                self._submit([job])

    def _surroundings(self) -> Surroundings:
        shares_software = SharedFSUsage.SOFTWARE_DEPLOYMENT in self.workflow.storage_settings.shared_fs_usage
        return Surroundings(
            folder=str(Path.cwd()),
            env={**({"PATH": os.environ["PATH"]} if shares_software else {}), **self.envvars()},
            backend=self.workflow.executor_settings.backend or "",
            workflow_id=self._workflow_id,
        )


def _of_workflow(workflow_id: str) -> str:
    return f'tags.snakemake_workflow = "{workflow_id}"'
