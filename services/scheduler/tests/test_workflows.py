"""A workflow is resumed from what failed; what succeeded is not run again."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_spec_pb2 import Dependency as Wire
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.scheduler.records import Counts, Dependency
from khomas.scheduler.store.workflow import carried_over
from khomas.scheduler.testing import Scheduler, shell, states
from khomas.scheduler.testing.backend import BatchSystem


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


async def resume(scheduler: Scheduler, *names: str, **more: Any) -> pb.RetryJobsResponse:
    request = pb.RetryJobsRequest(names=names, workflow=True, request_id=str(uuid4()), **more)
    answer = await scheduler.stub.RetryJobs(request)
    assert await scheduler.stub.RetryJobs(request) == answer
    return answer


async def output(scheduler: Scheduler, job: str, path: str) -> str:
    request = pb.ReadSandboxRequest(output=pb.JobOutput(job=job, path=path))
    return b"".join([piece.data async for piece in scheduler.stub.ReadSandbox(request)]).decode()


def fails_until(flag: Path, index: int) -> str:
    return f"if test {{index}} = {index} -a ! -e {flag}; then exit 1; fi; echo {{index}} > n.txt"


async def test_merger_gets_the_old_and_the_new_children(scheduler: Scheduler, tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    spec = shell(
        fails_until(flag, 2),
        splitter={"count": {"count": 4}},
        outputs=[{"glob": "n.txt"}],
        mergers=[{"text": {"path": "all.txt"}}],
    )
    answer = await scheduler.answer(spec)
    array, merger = answer.jobs[0], answer.mergers[0]
    assert (await scheduler.wait(merger.name)).status.reason == Reason.REASON_DEPENDENCY_FAILED
    flag.touch()
    again = await resume(scheduler, array.name)
    assert again.retried == 2
    mended, merged = again.jobs
    assert (mended.origin, merged.origin, merged.merges) == (array.uid, merger.uid, array.name)
    assert states([await scheduler.wait(merged.name)]) == ["SUCCEEDED"]
    assert await output(scheduler, merged.name, "all.txt") == "0\n1\n2\n3\n"
    assert [child.status.attempt for child in await scheduler.children(array.name)] == [1, 1, 1, 1]


async def test_whole_chain_behind_a_failure_goes_on(with_system: Scheduler, system: BatchSystem) -> None:
    [first, fine] = await with_system.submit(shell("first"), shell("fine"))
    deps = [{"job": first.name}, {"job": fine.name}]
    [second] = await with_system.submit(shell("second", dependencies=deps))
    [third] = await with_system.submit(shell("third", dependencies=[{"job": second.name}]))
    await until(lambda: len(system.going) == 2)
    ends = {system.items[token].manifest["job"]: token for token in system.going}
    system.end(ends[fine.name])
    await with_system.wait(fine.name)
    system.end(ends[first.name], 200, exit_code=1)
    assert (await with_system.wait(third.name)).status.reason == Reason.REASON_DEPENDENCY_FAILED
    again = await resume(with_system, first.name)
    assert [job.origin for job in again.jobs] == [first.uid, second.uid, third.uid]
    for job in again.jobs:
        await until(lambda: bool(system.going))
        [token] = system.going
        assert system.items[token].manifest["job"] == job.name
        system.end(token)
        assert states([await with_system.wait(job.name)]) == ["SUCCEEDED"]


async def test_any_job_that_waited_in_vain_names_its_workflow(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("first"))
    [last] = await with_system.submit(shell("last", dependencies=[{"job": first.name}]))
    await until(lambda: bool(system.going))
    system.end(system.going[0], 200, exit_code=1)
    await with_system.wait(last.name)
    again = await resume(with_system, last.name, memory_bytes=1000)
    assert [job.origin for job in again.jobs] == [first.uid, last.uid]


async def test_second_rescue_takes_up_what_the_first_left(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("first"))
    [last] = await with_system.submit(shell("last", dependencies=[{"job": first.name}]))
    origins = []
    for _ in range(2):
        await until(lambda: bool(system.going))
        system.end(system.going[0], 200, exit_code=1)
        await with_system.wait(last.name)
        again = await resume(with_system, first.name)
        origins.append([job.origin for job in again.jobs])
        last = again.jobs[1]
    assert origins[0] == [first.uid, origins[0][1]]
    assert origins[1][0] != first.uid
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await resume(with_system, first.name)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_dependency_on_one_child_follows_it(with_system: Scheduler, system: BatchSystem) -> None:
    [array] = await with_system.submit(shell("{index}", splitter={"count": {"count": 3}}))
    [reader] = await with_system.submit(shell("reader", dependencies=[{"job": f"{array.name}/2"}]))
    await until(lambda: len(system.going) == 3)
    for token in system.going:
        system.end(token, 200 if system.items[token].manifest["job"].endswith("/2") else 0, exit_code=1)
    await with_system.wait(reader.name)
    again = await resume(with_system, array.name)
    assert [job.origin for job in again.jobs] == [array.uid, reader.uid]
    await until(lambda: len(system.going) == 1)
    system.end(system.going[0])
    await until(lambda: len(system.going) == 1)
    assert system.items[system.going[0]].manifest["job"] == again.jobs[1].name


async def test_without_workflow_dependents_stay_failed(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("first"))
    [last] = await with_system.submit(shell("last", dependencies=[{"job": first.name}]))
    await until(lambda: bool(system.going))
    system.end(system.going[0], 200, exit_code=1)
    await with_system.wait(last.name)
    answer = await with_system.stub.RetryJobs(pb.RetryJobsRequest(names=[first.name], request_id=str(uuid4())))
    assert [job.origin for job in answer.jobs] == [first.uid]


@pytest.mark.parametrize(
    ("wanted", "succeeded", "size", "fraction"), [(0.0, 8, 2, 0.0), (0.9, 8, 2, 0.5), (1.0, 8, 2, 1.0)]
)
def test_fraction_counts_what_succeeded_before(wanted: float, succeeded: int, size: int, fraction: float) -> None:
    counts = Counts(
        {
            (JobState.JOB_STATE_SUCCEEDED, Reason.REASON_UNSPECIFIED): succeeded,
            (JobState.JOB_STATE_FAILED, Reason.REASON_APP_EXIT_CODE): size,
        }
    )
    old = Dependency("merger", "array", Wire.CONDITION_SUCCEEDED, wanted)
    [read, new] = carried_over("new", [old], {"array": "rest"}, {"rest": size}, {"array": counts})
    assert (read.job, read.target, read.kept) == ("new", "array", True)
    assert (new.job, new.target, new.kept) == ("new", "rest", False)
    assert new.min_fraction == pytest.approx(fraction)


def test_what_was_kept_is_not_asked_for_again() -> None:
    kept = Dependency("old", "done", Wire.CONDITION_SUCCEEDED, 0.0, kept=True)
    [carried] = carried_over("new", [kept], {}, {}, {})
    assert (carried.job, carried.target, carried.kept) == ("new", "done", True)
