"""One odd job must not hold up the others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.scheduler_service_pb2 import ListJobsRequest
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.backends.interface import SubmitItem, SubmitOutcome
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, Handover, memory_scheduler

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.1, "usage_interval": 0.5}
QUEUED, SUBMITTING = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_SUBMITTING
SUCCEEDED = JobState.JOB_STATE_SUCCEEDED
LATIN1 = "printf 'a\\n' > \"$(printf 'caf\\351.txt')\""


@pytest.fixture
async def memory(tmp_path: Path, database_url: str, system: BatchSystem) -> AsyncIterator[Scheduler]:
    """A scheduler over a batch system in memory, on both databases."""
    urls = {"scheduler": database_url}
    services, settings = memory_scheduler(system), {"scheduler": FAST}
    async with serve(services, state=tmp_path / "state", database_urls=urls, settings=settings) as served:
        yield Scheduler(served)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def token_of(scheduler: Scheduler, job: Job) -> str:
    queued = await scheduler.wait(job.name, [QUEUED])
    return queued.attempts[-1].uid.replace("-", "")


async def execute(scheduler: Scheduler, statement: str, **values: Any) -> None:
    """Change the database behind the scheduler's back."""
    async with scheduler.parts.database.write() as connection:
        await connection.execute(text(statement), values)


# ------------------------------------------------------------------------------------ what nodes tell


@pytest.mark.parametrize(
    "record",
    [
        {"message": "caf\udce9"},
        {"application_status": "a\0b"},
        {"application_status": "caf\udce9"},
        {"state": "NONSENSE"},
        {"exit_code": 2**70},
        {"usage": {"cpu_user_s": 1e300}},
        {"start_time": "2026-01-01T00:00:00"},
        {"outputs": [{"path": "caf\udce9"}]},
    ],
)
async def test_odd_record_spoils_its_own_job_at_most(
    memory: Scheduler, system: BatchSystem, record: dict[str, Any]
) -> None:
    bad, *good = await memory.submit(*[shell("true", retry={"max_attempts": 1}) for _ in range(4)])
    tokens = [await token_of(memory, job) for job in (bad, *good)]
    system.end(tokens[0], **record)
    for token in tokens[1:]:
        system.end(token)

    ended = [await memory.wait(job.name) for job in (bad, *good)]

    assert states(ended[1:]) == ["SUCCEEDED"] * 3
    assert "".join(ended[0].status.message + ended[0].status.application_status).isascii()


@pytest.mark.parametrize("words", ["RUNNING\0", "caf\udce9"])
async def test_odd_words_of_a_batch_system_are_written_out(memory: Scheduler, system: BatchSystem, words: str) -> None:
    system.words = words
    [job] = await memory.submit(shell("true"))
    system.end(await token_of(memory, job))

    ended = await memory.wait(job.name)

    assert states([ended]) == ["SUCCEEDED"]
    assert ended.attempts[0].native_state.isprintable()


async def test_odd_refusal_of_a_batch_system_is_written_out(memory: Scheduler, system: BatchSystem) -> None:
    system.handover, system.refusal = Handover.REJECT, "not\0today\udce9"
    [job] = await memory.submit(shell("true", retry={"max_attempts": 1}))

    ended = await memory.wait(job.name)

    assert ended.status.message == "memory refused it: not\\x00today\\udce9"


@pytest.mark.parametrize(
    ("script", "outputs"),
    [
        (LATIN1, [{"glob": "*.txt"}]),
        (f"{LATIN1}; exit 3", [{"glob": "*.txt", "when": "WHEN_ON_FAILURE", "min_files": -1}]),
        ("printf 'a\\000b\\n' > \"$KHOMAS_PROGRESS\"", []),
    ],
)
async def test_odd_file_holds_up_nobody(
    tmp_path: Path, database_url: str, script: str, outputs: list[dict[str, Any]]
) -> None:
    urls, settings = {"scheduler": database_url}, {"scheduler": FAST}
    async with serve(service, state=tmp_path / "state", database_urls=urls, settings=settings) as served:
        scheduler = Scheduler(served)
        jobs = await scheduler.run(shell(script, outputs=outputs), *[shell("true") for _ in range(5)])

    assert states(jobs[1:]) == ["SUCCEEDED"] * 5


async def test_output_with_a_name_that_is_no_text_fails_the_job(scheduler: Scheduler) -> None:
    [job] = await scheduler.run(shell(LATIN1, outputs=[{"glob": "*.txt"}]))

    assert job.status.reason == Reason.REASON_APP_CHECK_FAILED
    assert job.status.message == r"the name of the output 'caf\udce9.txt' is no UTF-8: call it otherwise"


@pytest.mark.parametrize("written", ["[]", "{", '{"state": "SUCCEEDED",\n"reason": {}}', '{"state": 3}'])
async def test_payload_that_forges_its_record_spoils_its_own_job_alone(scheduler: Scheduler, written: str) -> None:
    forge = f"printf '%s' '{written.replace('{', '{{').replace('}', '}}')}' > ../exit.json; kill -KILL $PPID"
    [bad] = await scheduler.submit(shell(forge, retry={"max_attempts": 1}))

    good = await scheduler.run(*[shell("sleep 0.5") for _ in range(3)])

    assert states(good) == ["SUCCEEDED"] * 3
    await scheduler.cancel(bad.name)


# --------------------------------------------------------------------------------- what nobody thought of


async def test_job_that_cannot_be_written_holds_up_nobody(memory: Scheduler, system: BatchSystem) -> None:
    bad, *good = await memory.submit(*[shell("true") for _ in range(6)])
    tokens = [await token_of(memory, job) for job in (bad, *good)]
    await execute(memory, "UPDATE job SET state = 22 WHERE uid = :uid", uid=bad.uid)  # what has ended never changes
    for token in tokens:
        system.end(token)

    ended = [await memory.wait(job.name) for job in good]

    assert states(ended) == ["SUCCEEDED"] * 5


async def test_job_that_cannot_be_got_ready_waits_and_holds_up_nobody(
    with_system: Scheduler, system: BatchSystem
) -> None:
    held = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}
    bad, *_ = jobs = await with_system.submit(*[shell("true", **held) for _ in range(4)])
    [array] = await with_system.submit(shell("true", splitter={"count": {"count": 3}}, **held))
    await execute(with_system, "UPDATE job SET memory_factor = x'31' WHERE uid = :uid", uid=bad.uid)
    await execute(with_system, "UPDATE job SET due = create_time")
    with_system.parts.desk.due.set()

    await until(lambda: len(system.submitted) == 6)

    waits = await with_system.get(bad.name)
    assert (states([waits]), waits.status.reason) == (["PENDING"], Reason.REASON_INFRA_ENVIRONMENT)
    assert waits.status.message.startswith("it cannot be got ready: TypeError")
    assert len(await with_system.children(array.name)) == 3
    for job in jobs[1:]:
        await with_system.wait(job.name, [QUEUED])


# -------------------------------------------------------------------------------------------- handover


class Forgetful(BatchSystem):
    """Takes two jobs a call, and gives no answer to the first."""

    capabilities = replace(BatchSystem.capabilities, max_batch=2)

    async def submit(self, items: list[SubmitItem]) -> list[SubmitOutcome]:  # type: ignore[override]
        first = not self.submitted
        outcomes = await super().submit(items)
        return [] if first else outcomes


async def test_jobs_behind_a_handover_that_went_wrong_are_handed_over(tmp_path: Path) -> None:
    system = Forgetful()
    services, settings = memory_scheduler(system), {"scheduler": FAST}
    async with serve(services, state=tmp_path / "state", settings=settings) as served:
        scheduler = Scheduler(served)
        jobs = await scheduler.submit(*[shell("true") for _ in range(6)])
        for job in jobs:
            await scheduler.wait(job.name, [QUEUED])

    assert sorted(system.submitted) == sorted(system.items)


async def test_job_that_failed_to_be_handed_over_again_is_handed_over_later(
    with_system: Scheduler, system: BatchSystem
) -> None:
    system.handover = Handover.THROTTLE
    odd, even = await with_system.submit(shell("true"), shell("true"))
    for job in (odd, even):
        await with_system.wait(job.name, [SUBMITTING])
    await execute(with_system, "UPDATE job SET memory_factor = x'31' WHERE uid = :uid", uid=odd.uid)
    system.handover = Handover.ACCEPT
    await with_system.wait(even.name, [QUEUED])
    assert states([await with_system.get(odd.name)]) == ["SUBMITTING"]

    await execute(with_system, "UPDATE job SET memory_factor = 1.0 WHERE uid = :uid", uid=odd.uid)

    await with_system.wait(odd.name, [QUEUED])


# ------------------------------------------------------------------------------------- what users wrote


async def test_pattern_that_takes_for_ever_stops_nobody(with_system: Scheduler, system: BatchSystem) -> None:
    rule = {"log_regex": "(a|a)*b", "action": "ACTION_RETRY"}
    bad, good = await with_system.submit(shell("true", retry={"rules": [rule]}), shell("true"))
    tokens = [await token_of(with_system, job) for job in (bad, good)]
    system.logs[tokens[0]] = b"a" * 60
    system.end(tokens[0], 200)
    system.end(tokens[1])

    ended = [await with_system.wait(job.name) for job in (bad, good)]

    assert states(ended) == ["FAILED", "SUCCEEDED"]


async def test_job_to_be_kept_for_ever_keeps_nothing_else(with_system: Scheduler, system: BatchSystem) -> None:
    kept, over = await with_system.submit(*[shell("true", retain_after_end="0s") for _ in range(2)])
    await execute(with_system, "UPDATE job SET retain_s = 4611686018427387904 WHERE uid = :uid", uid=kept.uid)
    for job in (kept, over):
        system.end(await token_of(with_system, job))
        await with_system.wait(job.name)

    async def left() -> list[str]:
        await with_system.parts.engine.retention.step()
        return [job.uid for job in (await with_system.stub.ListJobs(ListJobsRequest())).jobs]

    async with asyncio.timeout(10):
        while await left() != [kept.uid]:
            await asyncio.sleep(0.05)  # until their logs are collected
