"""Jobs whose inputs are on tape: they wait, say how far that is, and start as files arrive."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.app import service as scheduler_service
from khomas.scheduler.testing import Scheduler, shell
from khomas.storage.testing import until
from tests.storage.tape import CONTENT, Site, State, site_of
from tests.testbeds.tape import Tape

# Less than the minute after which a job is looked at again that nobody has woken.
PATIENCE = 45.0
_FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1}


@pytest.fixture
async def site(tmp_path: Path, tape: Tape) -> AsyncIterator[Site]:
    async with site_of(tape, tmp_path, scheduler_service, settings={"scheduler": _FAST}) as running:
        yield running


def waiting(job: Job) -> bool:
    """Tell whether a job waits for tape."""
    state, reason = job.status.state, job.status.reason
    return (state, reason) == (JobState.JOB_STATE_PENDING, Reason.REASON_WAIT_STAGE_FROM_TAPE)


async def test_jobs_wait_for_tape_in_one_request_and_start_as_files_arrive(site: Site) -> None:
    scheduler = Scheduler(site.storage.served)
    names = site.keep(24)
    specs = [
        shell("cat run* | wc -c", inputs=[{"file": name} for name in names[start : start + 3]])
        for start in range(0, 24, 3)
    ]
    jobs = [job.name for job in await scheduler.submit(*specs)]

    async def all_wait() -> bool:
        return all([waiting(await scheduler.get(name)) for name in jobs])

    await until(all_wait, PATIENCE)
    requests = await site.asked(24)
    assert sum(requests) == 24
    assert len(requests) < len(jobs)
    await site.until_all(State.STATE_REQUESTED)

    async def told() -> bool:
        return "3 of 3 inputs are on tape at lyon-hpss; stage request" in (await scheduler.get(jobs[-1])).status.message

    await until(told, PATIENCE)
    message = (await scheduler.get(jobs[-1])).status.message
    assert "0 done" in message
    assert "in its queue" in message

    brought = await site.deliver(6)
    assert sorted(f"/{path}" for path in brought) == names[:6]
    for name in jobs[:2]:
        done = await scheduler.wait(name, seconds=PATIENCE)
        assert done.status.state == JobState.JOB_STATE_SUCCEEDED, done.status
        assert (await scheduler.log(name)).strip() == str(3 * len(CONTENT))
    assert all([waiting(await scheduler.get(name)) for name in jobs[2:]])

    await site.deliver(18)
    ended = [await scheduler.wait(name, seconds=PATIENCE) for name in jobs]
    assert {job.status.state for job in ended} == {JobState.JOB_STATE_SUCCEEDED}
    assert sum(await site.asked(24)) == 24


async def test_hundred_jobs_are_few_requests_though_few_run_at_once(site: Site) -> None:
    scheduler = Scheduler(site.storage.served)
    names = site.keep(100)
    await scheduler.submit(*(shell("true", inputs=[{"file": name}]) for name in names))
    requests = await site.asked(100)
    assert sum(requests) == 100
    assert len(requests) <= 5


async def test_job_that_has_some_inputs_on_disk_says_how_many(site: Site) -> None:
    scheduler = Scheduler(site.storage.served)
    names = site.keep(2)
    await site.storage.store("/hess/on-disk", b"abc")
    spec = shell("cat run* on-disk", inputs=[{"file": name} for name in [*names, "/hess/on-disk"]])
    (job,) = await scheduler.submit(spec)

    async def told() -> bool:
        found = await scheduler.get(job.name)
        return waiting(found) and "2 of 3 inputs are on tape" in found.status.message

    await until(told, PATIENCE)
    await site.deliver(1)

    async def half() -> bool:
        message = (await scheduler.get(job.name)).status.message
        return "1 of 3 inputs are on tape" in message and "2 done" in message

    await until(half, PATIENCE)
    await site.deliver(1)
    assert (await scheduler.wait(job.name, seconds=PATIENCE)).status.state == JobState.JOB_STATE_SUCCEEDED


async def test_jobs_outlast_a_front_end_that_is_down(site: Site) -> None:
    scheduler = Scheduler(site.storage.served)
    (name,) = site.keep(1)
    site.tape.server.stop()
    (job,) = await scheduler.submit(shell("cat run*", inputs=[{"file": name}]))

    async def told() -> bool:
        found = await scheduler.get(job.name)
        return waiting(found) and "not asked for yet" in found.status.message

    await until(told, PATIENCE)
    site.tape.server.start()
    await site.deliver(1)
    assert (await scheduler.wait(job.name, seconds=PATIENCE)).status.state == JobState.JOB_STATE_SUCCEEDED
