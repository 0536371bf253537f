"""Jobs on this machine, from the submission to their end."""

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
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
