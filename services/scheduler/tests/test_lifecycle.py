"""What happens to a job when things go wrong, wait or are wanted otherwise."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import grpc
import pytest

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.boundary.status import reason_of
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem, Handover

QUEUED, RUNNING = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_RUNNING


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def token_of(scheduler: Scheduler, job: Job) -> str:
    """Wait until the job is with the batch system, and give the token of its attempt."""
    queued = await scheduler.wait(job.name, [QUEUED, RUNNING])
    return queued.attempts[-1].uid.replace("-", "")


async def events_of(scheduler: Scheduler, name: str) -> list[tuple[str, str]]:
    """Kinds and states of the events of a job."""
    found = []
    async for batch in scheduler.stub.WatchEvents(WatchEventsRequest(until_now=True)):
        for event in batch.events:
            job = Job()
            if event.subject == name and event.resource.Unpack(job):
                found.append((event.kind.rpartition(".")[2], states([job])[0]))
    return found


async def test_every_step_has_one_event(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    token = await token_of(with_system, job)
    system.start(token)
    await with_system.wait(job.name, [RUNNING])
    system.end(token)
    ended = await with_system.wait(job.name)
    assert await events_of(with_system, job.name) == [
        ("created", "PENDING"),
        ("changed", "SUBMITTING"),
        ("changed", "QUEUED"),
        ("changed", "RUNNING"),
        ("finished", "SUCCEEDED"),
    ]
    assert ended.status.version == 5


async def test_infrastructure_failure_is_tried_again_with_a_new_attempt(
    with_system: Scheduler, system: BatchSystem
) -> None:
    [job] = await with_system.submit(shell("true"))
    system.end(await token_of(with_system, job), 402)
    await until(lambda: len(system.submitted) == 2)
    system.end(system.submitted[1])
    ended = await with_system.wait(job.name)
    assert states([ended]) == ["SUCCEEDED"]
    assert [(one.number, one.reason) for one in ended.attempts] == [(1, 402), (2, 0)]


async def test_attempts_run_out(with_system: Scheduler, system: BatchSystem) -> None:
    system.handover = Handover.REJECT
    [job] = await with_system.submit(shell("true", retry={"max_attempts": 2}))
    ended = await with_system.wait(job.name)
    assert ended.status.reason == Reason.REASON_INFRA_SUBMIT_REJECTED
    assert len(ended.attempts) == 2


async def test_memory_grows_when_a_rule_says_so(with_system: Scheduler, system: BatchSystem) -> None:
    rule = {"reasons": ["REASON_LIMIT_MEMORY"], "action": "ACTION_GROW_AND_RETRY", "grow_memory": 2.0}
    spec = shell("true", resources={"memory_bytes": 1000}, retry={"rules": [rule]})
    [job] = await with_system.submit(spec)
    system.end(await token_of(with_system, job), 302)
    await until(lambda: len(system.submitted) == 2)
    manifests = [system.items[token].manifest["resources"]["memory_bytes"] for token in system.submitted]
    assert manifests == [1000, 2000]
    system.end(system.submitted[1])
    await with_system.wait(job.name)


async def test_rule_on_the_log_holds_the_job_until_it_is_released(with_system: Scheduler, system: BatchSystem) -> None:
    rule = {"log_regex": "license .* expired", "action": "ACTION_HOLD"}
    [job] = await with_system.submit(shell("true", retry={"rules": [rule]}))
    token = await token_of(with_system, job)
    system.logs[token] = b"license of kaskade expired"
    system.end(token, 200, exit_code=1)
    held = await with_system.wait(job.name, [JobState.JOB_STATE_PENDING])
    assert held.status.reason == Reason.REASON_WAIT_HELD_BY_USER
    await with_system.stub.BatchReleaseJobs(pb.BatchReleaseJobsRequest(names=[job.name], request_id=str(uuid4())))
    await until(lambda: len(system.submitted) == 2)


async def test_lost_answer_never_leads_to_a_second_handover(with_system: Scheduler, system: BatchSystem) -> None:
    system.handover = Handover.ANSWER_LOST
    [job] = await with_system.submit(shell("true"))
    doubtful = await with_system.wait(job.name, [JobState.JOB_STATE_SUBMITTING])
    queued = await with_system.wait(job.name, [QUEUED])
    system.handover = Handover.ACCEPT
    assert len(queued.attempts) == 1
    system.end(system.submitted[0])
    ended = await with_system.wait(job.name)
    assert (states([ended]), len(system.submitted)) == (["SUCCEEDED"], 1)
    assert doubtful.status.attempt == 1


async def test_lost_call_is_repeated_under_the_same_token(with_system: Scheduler, system: BatchSystem) -> None:
    system.handover = Handover.CALL_LOST
    [job] = await with_system.submit(shell("true"))
    async with asyncio.timeout(5):
        while (await with_system.get(job.name)).status.reason != Reason.REASON_INFRA_SUBMIT_UNKNOWN:
            await asyncio.sleep(0.01)
    system.handover = Handover.ACCEPT
    queued = await with_system.wait(job.name, [QUEUED])
    assert [one.uid.replace("-", "") for one in queued.attempts] == system.submitted


async def test_throttled_handover_is_repeated(with_system: Scheduler, system: BatchSystem) -> None:
    system.handover = Handover.THROTTLE
    [job] = await with_system.submit(shell("true"))
    await with_system.wait(job.name, [JobState.JOB_STATE_SUBMITTING])
    system.handover = Handover.ACCEPT
    assert len((await with_system.wait(job.name, [QUEUED])).attempts) == 1


@pytest.mark.parametrize("settings", [{"lost_after": 0.1}])
async def test_job_that_vanished_is_lost_and_tried_again(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    system.vanish(await token_of(with_system, job))
    await until(lambda: len(system.submitted) == 2)
    first = (await with_system.get(job.name)).attempts[0]
    assert first.reason == Reason.REASON_INFRA_LOST


@pytest.mark.parametrize("settings", [{"heartbeat_timeout": 0.1, "lost_after": 0.1}])
async def test_silent_backend_stalls_its_jobs_and_loses_none(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    token = await token_of(with_system, job)
    system.answers = False
    await with_system.wait(job.name, [JobState.JOB_STATE_STALLED])
    system.answers = True
    await with_system.wait(job.name, [QUEUED])
    system.end(token)
    assert states([await with_system.wait(job.name)]) == ["SUCCEEDED"]


async def test_job_waits_for_what_it_depends_on(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("true"))
    [second] = await with_system.submit(shell("true", dependencies=[{"job": first.name}]))
    token = await token_of(with_system, first)
    waiting = await with_system.get(second.name)
    assert waiting.status.reason == Reason.REASON_WAIT_DEPENDENCY
    system.end(token)
    await token_of(with_system, second)


async def test_failure_is_passed_on_along_a_chain(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("true"))
    [second] = await with_system.submit(shell("true", dependencies=[{"job": first.name}]))
    [third] = await with_system.submit(shell("true", dependencies=[{"job": second.name}]))
    [ended] = await with_system.submit(
        shell("true", dependencies=[{"job": third.name, "condition": "CONDITION_ENDED"}])
    )
    [rescue] = await with_system.submit(
        shell("true", dependencies=[{"job": first.name, "condition": "CONDITION_FAILED"}])
    )
    system.end(await token_of(with_system, first), 200, exit_code=1)
    failed = await with_system.wait(third.name)
    assert failed.status.reason == Reason.REASON_DEPENDENCY_FAILED
    await token_of(with_system, ended)
    await token_of(with_system, rescue)


async def test_dependency_on_what_had_ended_before(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("true"))
    system.end(await token_of(with_system, first), 200)
    await with_system.wait(first.name)
    [vain, after] = await with_system.submit(
        shell("true", dependencies=[{"job": first.name}]),
        shell("true", dependencies=[{"job": first.name, "condition": "CONDITION_ENDED"}]),
    )
    assert (await with_system.wait(vain.name)).status.reason == Reason.REASON_DEPENDENCY_FAILED
    await token_of(with_system, after)


async def test_held_job_does_not_start_before_it_is_released(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true", limits={"start_after": "2100-01-01T00:00:00Z"}))
    hold = pb.BatchHoldJobsRequest(names=[job.name], request_id=str(uuid4()))
    assert (await with_system.stub.BatchHoldJobs(hold)).held == 1
    assert (await with_system.get(job.name)).status.reason == Reason.REASON_WAIT_HELD_BY_USER
    release = pb.BatchReleaseJobsRequest(names=[job.name], request_id=str(uuid4()))
    assert (await with_system.stub.BatchReleaseJobs(release)).released == 1
    assert (await with_system.get(job.name)).status.reason == Reason.REASON_WAIT_START_TIME
    assert system.submitted == []


async def test_held_array_keeps_its_children_back(with_system: Scheduler, system: BatchSystem) -> None:
    limits = {"start_after": "2100-01-01T00:00:00Z"}
    [array] = await with_system.submit(shell("true", splitter={"count": {"count": 9}}, limits=limits))
    hold = pb.BatchHoldJobsRequest(names=[array.name], request_id=str(uuid4()))
    assert (await with_system.stub.BatchHoldJobs(hold)).held == 9
    got = await with_system.get(array.name)
    assert dict(got.counts.by_reason) == {"WAIT_HELD_BY_USER": 9}


async def test_cancelled_job_that_had_succeeded_says_so(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    token = await token_of(with_system, job)
    system.end(token)
    await with_system.wait(job.name)
    answer = await with_system.cancel(job.name)
    assert (answer.cancelled, answer.cancelling, answer.already_final) == (0, 0, 1)
    assert states([await with_system.get(job.name)]) == ["SUCCEEDED"]


async def test_deadline_ends_a_job_that_has_not_started(with_system: Scheduler, system: BatchSystem) -> None:
    from datetime import UTC, datetime, timedelta

    soon = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat().replace("+00:00", "Z")
    [job] = await with_system.submit(shell("true", limits={"start_before": soon}))
    ended = await with_system.wait(job.name)
    assert (ended.status.state, ended.status.reason) == (JobState.JOB_STATE_FAILED, Reason.REASON_LIMIT_DEADLINE)
    assert system.cancelled


async def test_array_runs_no_more_at_a_time_than_allowed(with_system: Scheduler, system: BatchSystem) -> None:
    [array] = await with_system.submit(shell("true", splitter={"count": {"count": 7}, "max_running": 2}))
    most = 0
    while len(system.records) < 7:
        await until(lambda: system.going)
        await asyncio.sleep(0.1)
        most = max(most, len(system.going))
        for token in system.going:
            system.end(token)
    assert states([await with_system.wait(array.name)]) == ["SUCCEEDED"]
    assert most == 2


async def test_failed_children_are_tried_again_as_a_new_array(with_system: Scheduler, system: BatchSystem) -> None:
    spec = shell("echo {index}", splitter={"count": {"count": 4}}, resources={"memory_bytes": 1000})
    [array] = await with_system.submit(spec)
    await until(lambda: len(system.going) == 4)
    for token in system.going:
        index = system.items[token].manifest["command"][-1].split()[-1]
        system.end(token, 302 if index in "13" else 0)
    await with_system.wait(array.name)
    request = pb.RetryJobsRequest(names=[array.name], memory_factor=1.5, request_id=str(uuid4()))
    answer = await with_system.stub.RetryJobs(request)
    assert await with_system.stub.RetryJobs(request) == answer
    [again] = answer.jobs
    assert (answer.retried, again.origin) == (2, array.uid)
    await until(lambda: len(system.going) == 2)
    manifests = [system.items[token].manifest for token in system.going]
    assert sorted(manifest["command"][-1] for manifest in manifests) == ["echo 1", "echo 3"]
    assert {manifest["resources"]["memory_bytes"] for manifest in manifests} == {1500}
    for token in system.going:
        system.end(token)
    assert dict((await with_system.wait(again.name)).counts.by_state) == {"SUCCEEDED": 2}
    explanation = await with_system.stub.ExplainJob(pb.ExplainJobRequest(name=array.name))
    assert f"tried again as {again.name}" in explanation.details


async def test_what_succeeded_is_not_tried_again(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true"))
    system.end(await token_of(with_system, job))
    await with_system.wait(job.name)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await with_system.stub.RetryJobs(pb.RetryJobsRequest(names=[job.name], request_id=str(uuid4())))
    assert reason_of(caught.value) == "JOB_STATE"


async def test_explanation_of_a_failure_has_the_log_and_the_remedy(with_system: Scheduler, system: BatchSystem) -> None:
    [job] = await with_system.submit(shell("true", resources={"memory_bytes": 1 << 30}))
    token = await token_of(with_system, job)
    system.logs[token] = b"reading\nMemoryError\n"
    system.end(token, 302, usage={"max_memory_bytes": 3 << 30, "wall_s": 2.5})
    await with_system.wait(job.name)
    explanation = await with_system.stub.ExplainJob(pb.ExplainJobRequest(name=job.name))
    assert (explanation.state, explanation.reason) == ("FAILED", "LIMIT_MEMORY")
    assert explanation.remedies[0].command == f"khomas retry {job.uid} --memory 3GiB"
    assert "| MemoryError" in explanation.details


async def test_explanation_of_a_job_that_waits_at_its_backend_has_the_words_of_that(
    with_system: Scheduler, system: BatchSystem
) -> None:
    system.words = "waits for a pilot, which is PENDING (Resources)"
    [job] = await with_system.submit(shell("true"))
    token = await token_of(with_system, job)
    request = pb.ExplainJobRequest(name=job.name)
    assert (await with_system.stub.ExplainJob(request)).summary.endswith(f" says: {system.words}")
    system.answers = False
    assert (await with_system.stub.ExplainJob(request)).summary.endswith(": nothing is wrong")
    system.answers = True
    system.start(token)
    await with_system.wait(job.name, [RUNNING])
    assert (await with_system.stub.ExplainJob(request)).summary.endswith(": nothing is wrong")


async def test_explanation_of_waiting_has_what_it_waits_for(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("true"))
    [second] = await with_system.submit(shell("true", dependencies=[{"job": first.name}]))
    await token_of(with_system, first)
    explanation = await with_system.stub.ExplainJob(pb.ExplainJobRequest(name=second.name))
    assert explanation.reason == "WAIT_DEPENDENCY"
    assert explanation.details[0] == f"waits for {first.name}: QUEUED"


async def test_log_is_followed_until_the_job_is_final(scheduler: Scheduler) -> None:
    [job] = await scheduler.submit(shell("echo one; sleep 0.5; echo two"))
    assert await scheduler.log(job.name, follow=True) == "one\ntwo\n"
    assert states([await scheduler.get(job.name)]) == ["SUCCEEDED"]


async def test_log_outlives_the_folder_of_the_job(scheduler: Scheduler) -> None:
    [job] = await scheduler.run(shell("echo kept"))
    spool = scheduler.served.state / "scheduler" / "backends" / "local" / "jobs"
    await until(lambda: not list(spool.iterdir()))
    assert await scheduler.log(job.name) == "kept\n"


async def test_job_that_the_batch_system_ended_by_itself_is_tried_again(
    with_system: Scheduler, system: BatchSystem
) -> None:
    [job] = await with_system.submit(shell("true", retry={"max_attempts": 1}))
    system.end(await token_of(with_system, job), 600)
    await until(lambda: len(system.submitted) == 2)
    [first, _] = (await with_system.get(job.name)).attempts
    assert (first.state, first.reason) == (JobState.JOB_STATE_FAILED, Reason.REASON_INFRA_PREEMPTED)


async def test_job_that_waits_for_a_child_that_never_was_made_hears_of_its_end(with_system: Scheduler) -> None:
    limits = {"start_after": "2100-01-01T00:00:00Z"}
    [array] = await with_system.submit(shell("true", splitter={"count": {"count": 9}}, limits=limits))
    [waiting] = await with_system.submit(shell("true", dependencies=[{"job": f"{array.name}/7"}]))
    await with_system.cancel(array.name)
    assert (await with_system.wait(waiting.name)).status.reason == Reason.REASON_DEPENDENCY_FAILED
    child = await with_system.get(f"{array.name}/7")
    assert (states([child]), child.HasField("end_time")) == (["CANCELLED"], True)


async def test_higher_priority_goes_first(with_system: Scheduler, system: BatchSystem) -> None:
    with_system.parts.desk.sites["memory"].settings = with_system.parts.desk.sites["memory"].settings.model_copy(
        update={"max_jobs": 1}
    )
    [blocker] = await with_system.submit(shell("true"))
    token = await token_of(with_system, blocker)
    low, high = await with_system.submit(shell("true"), shell("true", priority=5))
    system.end(token)
    await with_system.wait(high.name, [QUEUED])
    assert states([await with_system.get(low.name)]) == ["PENDING"]
