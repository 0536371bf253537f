"""What ended long ago is forgotten, what is lost is told as far as somebody knows."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import func, insert, select

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_pb2 import Job
from khomas.api.scheduler.v1.state_pb2 import Reason
from khomas.kit.ids import new_uids
from khomas.kit.testing import serve
from khomas.scheduler import tables
from khomas.scheduler.backends.interface import Usage
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler
from khomas.scheduler.testing.files import Files, memory_services

QUICK = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.05, "find_pause": 0.1, "lost_after": 0.1}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"retention_pause": 0.05, "collect_after": 0.05}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def rows(scheduler: Scheduler) -> dict[str, int]:
    """How many rows the tables have that belong to jobs."""
    names = ("job", "attempt", "spec", "job_count", "dependency", "sandbox_use", "sandbox", "rescue", "slow")
    async with scheduler.parts.database.read() as connection:
        return {
            name: (
                await connection.execute(select(func.count()).select_from(tables.metadata.tables[name]))
            ).scalar_one()
            for name in names
        }


async def gone(scheduler: Scheduler, name: str, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while (await scheduler.stub.BatchGetJobs(pb.BatchGetJobsRequest(names=[name]))).results[0].HasField("job"):
            await asyncio.sleep(0.02)


def folders(scheduler: Scheduler) -> list[Path]:
    folder = scheduler.parts.desk.folder
    return list(folder.iterdir()) if folder.exists() else []


async def test_job_is_forgotten_with_its_log_when_its_time_is_over(scheduler: Scheduler) -> None:
    content = b"hello"
    sha256 = hashlib.sha256(content).hexdigest()
    sandbox = pb.SandboxContent(sha256=sha256, content=content)
    request = pb.BatchCreateSandboxesRequest(sandboxes=[sandbox], request_id=str(uuid4()))
    await scheduler.stub.BatchCreateSandboxes(request)
    inputs = [{"sandbox": {"sha256": sha256, "name": "a.txt", "size_bytes": 5}}]
    [job] = await scheduler.run(shell("cat a.txt", inputs=inputs, retain_after_end="1s"))
    await until(lambda: len(folders(scheduler)) == 1)
    assert await scheduler.log(job.name) == "hello"
    await gone(scheduler, job.name)
    assert folders(scheduler) == []
    assert await rows(scheduler) == {**dict.fromkeys(await rows(scheduler), 0), "sandbox": 1}


async def test_array_goes_with_all_its_children(scheduler: Scheduler) -> None:
    [array] = await scheduler.run(shell("true", splitter={"count": {"count": 5}}, retain_after_end="0s"))
    await gone(scheduler, array.name)
    assert set((await rows(scheduler)).values()) == {0}


async def test_jobs_that_do_not_say_are_kept(scheduler: Scheduler) -> None:
    kept, over = await scheduler.run(shell("true"), shell("true", retain_after_end="0s"))
    await gone(scheduler, over.name)
    assert (await scheduler.get(kept.name)).uid == kept.uid


async def test_job_that_another_one_still_waits_for_is_kept(with_system: Scheduler, system: BatchSystem) -> None:
    [first] = await with_system.submit(shell("true", retain_after_end="0s"))
    later = {"limits": {"start_after": "2100-01-01T00:00:00Z"}}
    [reader] = await with_system.submit(shell("true", inputs=[{"job_outputs": first.name}], **later))
    await until(lambda: bool(system.going))
    system.end(system.going[0])
    await with_system.wait(first.name)
    await asyncio.sleep(0.4)
    assert (await with_system.get(first.name)).uid == first.uid
    await with_system.cancel(reader.name)
    await gone(with_system, first.name)


@pytest.fixture
async def short(tmp_path: Path) -> AsyncIterator[tuple[Scheduler, BatchSystem, Files]]:
    """A scheduler that keeps nothing for long, over a batch system and beside a storage."""
    system, files = BatchSystem(), Files()
    settings = QUICK | {"retain": 0.2, "retain_sandboxes": 0.1, "retention_pause": 0.05}
    services = (*memory_services(files), memory_scheduler(system))
    async with serve(*services, state=tmp_path / "state", settings={"scheduler": settings}) as served:
        yield Scheduler(served), system, files


async def test_service_may_keep_everything_for_a_while_only(short: tuple[Scheduler, BatchSystem, Files]) -> None:
    scheduler, system, _ = short
    [over] = await scheduler.submit(shell("true"))
    [kept] = await scheduler.submit(shell("true", retain_after_end="3600s"))
    await until(lambda: len(system.going) == 2)
    for token in system.going:
        system.end(token)
    await gone(scheduler, over.name)
    assert (await scheduler.get(kept.name)).uid == kept.uid


async def test_content_that_no_job_reads_is_deleted(short: tuple[Scheduler, BatchSystem, Files]) -> None:
    scheduler, _, _ = short
    contents = {hashlib.sha256(text).hexdigest(): text for text in (b"read", b"forgotten")}
    sandboxes = [pb.SandboxContent(sha256=sha256, content=text) for sha256, text in contents.items()]
    read, forgotten = contents
    request = pb.BatchCreateSandboxesRequest(sandboxes=sandboxes, request_id=str(uuid4()))
    await scheduler.stub.BatchCreateSandboxes(request)
    inputs = [{"sandbox": {"sha256": read, "name": "a", "size_bytes": 4}}]
    await scheduler.submit(shell("true", inputs=inputs, limits={"start_after": "2100-01-01T00:00:00Z"}))
    path = scheduler.parts.desk.sandboxes.path
    await until(lambda: not path(forgotten).exists())
    assert path(read).read_bytes() == b"read"
    missing = await scheduler.stub.FindMissingSandboxes(pb.FindMissingSandboxesRequest(sha256=list(contents)))
    assert list(missing.sha256) == [forgotten]


async def test_lost_attempt_tells_what_it_used_and_gives_up_its_upload(
    short: tuple[Scheduler, BatchSystem, Files],
) -> None:
    scheduler, system, files = short
    spec = shell(
        "true",
        outputs=[{"glob": "a", "name_pattern": "/hess/a"}],
        retry={"max_attempts": 1},
        retain_after_end="3600s",
    )
    [job] = await scheduler.submit(spec)
    await until(lambda: bool(system.going))
    [token] = system.going
    await scheduler.wait(job.name, [5])
    system.used[token] = Usage(wall_s=7.0, cpu_user_s=5.0, max_memory_bytes=1 << 20)
    system.vanish(token)
    ended = await scheduler.wait(job.name)
    [attempt] = ended.attempts
    assert attempt.reason == Reason.REASON_INFRA_LOST
    assert (attempt.usage.cpu_user_time.seconds, attempt.usage.max_memory_bytes) == (5, 1 << 20)
    await until(lambda: files.abandoned == list(files.uploads))


async def test_kept_dependencies_of_a_resumed_workflow_protect_what_it_reads(
    with_system: Scheduler, system: BatchSystem
) -> None:
    fine, bad = await with_system.submit(shell("fine", retain_after_end="1s"), shell("bad"))
    inputs = [{"job_outputs": fine.name}, {"job_outputs": bad.name}]
    [reader] = await with_system.submit(shell("reader", inputs=inputs))
    await until(lambda: len(system.going) == 2)
    for token in system.going:
        system.end(token, 0 if system.items[token].manifest["job"] == fine.name else 200, exit_code=1)
    await with_system.wait(reader.name)
    retry = pb.RetryJobsRequest(names=[bad.name], workflow=True, request_id=str(uuid4()))
    again: list[Job] = list((await with_system.stub.RetryJobs(retry)).jobs)
    await asyncio.sleep(1.5)
    assert (await with_system.get(fine.name)).uid == fine.uid
    await with_system.cancel(*[job.name for job in again])
    await gone(with_system, fine.name)


async def test_jobs_that_are_kept_do_not_hide_those_whose_time_is_over(
    tmp_path: Path, database_url: str, system: BatchSystem
) -> None:
    urls, settings = {"scheduler": database_url}, QUICK | {"retain": 3600, "engine": False}
    service = memory_scheduler(system)
    async with serve(service, state=tmp_path, settings={"scheduler": settings}, database_urls=urls) as served:
        scheduler = Scheduler(served)
        await scheduler.parts.desk.leadership.acquire()
        [waiting] = await scheduler.submit(shell("true"))
        await scheduler.cancel(waiting.name)
        ended = datetime.now(UTC) - timedelta(days=7)
        uids = new_uids(3605)
        async with scheduler.parts.database.write() as connection:
            row = (await connection.execute(select(tables.job))).one()._asdict()
            kept = [row | {"uid": uid, "retain_s": 30 * 86400, "end_time": ended} for uid in uids[:1000]]
            ever = [row | {"uid": uids[1000], "retain_s": 315_576_000_000, "end_time": ended}]
            over = [row | {"uid": uid, "retain_s": 2 * 86400, "end_time": ended} for uid in uids[1001:2202]]
            usual = [row | {"uid": uid, "end_time": ended} for uid in uids[2202:3604]]
            waiter = [row | {"uid": uids[3604], "end_time": None}]
            waits = {"job": uids[3604], "condition": 1, "min_fraction": 0.0, "kept": False}
            for rows_of in (kept, ever, over, usual, waiter):
                await connection.execute(insert(tables.job), rows_of)
            await connection.execute(insert(tables.dependency), [waits | {"target": uid} for uid in uids[1001:2201]])
        await scheduler.parts.engine.retention.step()
        async with scheduler.parts.database.read() as connection:
            left = set((await connection.execute(select(tables.job.c.uid))).scalars())
        assert left == {waiting.uid, *uids[:2201], uids[3604]}


async def test_forgotten_job_is_not_found(scheduler: Scheduler) -> None:
    [job] = await scheduler.run(shell("true", retain_after_end="0s"))
    await gone(scheduler, job.name)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scheduler.get(job.name)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
