"""Jobs on this machine, from the submission to their end."""

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.telemetry.trace import Trace, enter_trace
from khomas.scheduler.testing import Scheduler, shell, states


async def test_job_runs_and_its_log_is_there(scheduler: Scheduler) -> None:
    [job] = await scheduler.run(shell("echo hello; echo trouble >&2"))
    assert states([job]) == ["SUCCEEDED"]
    assert await scheduler.log(job.name) == "hello\n"
    assert await scheduler.log(job.name, pb.ReadLogRequest.STREAM_STDERR) == "trouble\n"


async def test_failed_payload_is_not_tried_again(scheduler: Scheduler) -> None:
    [job] = await scheduler.run(shell("exit 3"))
    assert job.status.state == JobState.JOB_STATE_FAILED
    assert job.status.reason == Reason.REASON_APP_EXIT_CODE
    assert [attempt.exit_code for attempt in job.attempts] == [3]


async def test_array_runs_all_its_children(scheduler: Scheduler) -> None:
    [array] = await scheduler.run(shell("echo {index}", splitter={"count": {"count": 5}}))
    assert states([array]) == ["SUCCEEDED"]
    assert dict(array.counts.by_state) == {"SUCCEEDED": 5}
    children = await scheduler.children(array.name)
    assert [await scheduler.log(child.name) for child in children] == [f"{index}\n" for index in range(5)]


async def test_running_job_is_cancelled(scheduler: Scheduler) -> None:
    [job] = await scheduler.submit(shell("sleep 60"))
    await scheduler.wait(job.name, [JobState.JOB_STATE_RUNNING])
    answer = await scheduler.cancel(job.name)
    assert (answer.cancelled, answer.cancelling) == (0, 1)
    ended = await scheduler.wait(job.name)
    assert (ended.status.state, ended.status.reason) == (JobState.JOB_STATE_CANCELLED, Reason.REASON_USER_CANCELLED)


async def test_trace_of_the_submission_is_kept_with_a_job_and_in_its_environment(scheduler: Scheduler) -> None:
    trace = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
    enter_trace(trace)
    printing = 'echo "$TRACEPARENT"'
    single, array = await scheduler.submit(shell(printing), shell(printing, splitter={"count": {"count": 2}}))
    enter_trace(Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
    await scheduler.submit(shell(printing))

    ended = [await scheduler.wait(name) for name in (single.name, f"{array.name}/1")]

    assert [await scheduler.log(job.name) for job in ended] == [f"{trace.traceparent}\n"] * 2
    assert [job.trace_id for job in ended] == [trace.trace_id] * 2
    listed = await scheduler.stub.ListJobs(pb.ListJobsRequest(filter=f"trace_id = {trace.trace_id}"))
    assert {(job.name, job.trace_id) for job in listed.jobs} == {
        (single.name, trace.trace_id),
        (array.name, trace.trace_id),
    }
