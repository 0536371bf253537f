"""What was said to batch systems can be read later, without secrets, for a while."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import func, select

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.job_command_pb2 import JobCommand
from khomas.api.scheduler.v1.state_pb2 import JobState
from khomas.kit.database import count_statements
from khomas.kit.testing import serve
from khomas.scheduler import tables
from khomas.scheduler.backends import commands
from khomas.scheduler.backends.interface import PollResult, SubmitItem, SubmitOutcome
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler

SECRET = "s3cr3t-0123456789"
TROUBLE = ("sh", "-c", f"echo trouble: 'Authorization: Bearer {SECRET}' >&2; exit 3", "-H", f"Bearer {SECRET}")


@dataclass(slots=True)
class Spoken(BatchSystem):
    """The batch system, driven by commands."""

    # Run at each submission; with `each` once a job, with its token at the end.
    command: Sequence[str] = TROUBLE
    each: bool = False
    poll_command: Sequence[str] = ("true",)

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Say it first."""
        for words in [[item.token] for item in items] if self.each else [[]]:
            await commands.run([*self.command, *words], seconds=10)
        return await BatchSystem.submit(self, items)

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """Say it first."""
        result = await commands.run(self.poll_command, seconds=10)
        if result.exit_code:
            raise ConnectionError(result.complaint)
        return await BatchSystem.poll(self, ids, cursor, measure)


@pytest.fixture
def system() -> BatchSystem:
    return Spoken()


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"retention_pause": 0.05}


async def said(scheduler: Scheduler, name: str, **more: Any) -> list[JobCommand]:
    request = pb.ListJobCommandsRequest(name=name, **more)
    return list((await scheduler.stub.ListJobCommands(request)).commands)


def about(found: Sequence[JobCommand], operation: JobCommand.Operation.ValueType) -> list[JobCommand]:
    return [one for one in found if one.operation == operation]


async def until(
    scheduler: Scheduler, name: str, good: Callable[[list[JobCommand]], bool], seconds: float = 15
) -> list[JobCommand]:
    async with asyncio.timeout(seconds):
        while not good(found := await said(scheduler, name)):
            await asyncio.sleep(0.02)
    return found


def submitted(found: Sequence[JobCommand]) -> list[JobCommand]:
    return about(found, JobCommand.OPERATION_SUBMIT)


async def queued(scheduler: Scheduler, number: int = 1) -> list[str]:
    jobs = await scheduler.submit(*[shell("true") for _ in range(number)])
    for job in jobs:
        await scheduler.wait(job.name, [JobState.JOB_STATE_QUEUED])
    return [job.name for job in jobs]


async def test_command_of_a_submission_is_kept_without_its_secrets(with_system: Scheduler) -> None:
    began = datetime.now(UTC)
    [name] = await queued(with_system)
    [one] = submitted(await until(with_system, name, lambda found: bool(submitted(found))))
    assert (one.attempt, one.backend, one.exit_code, one.failed, one.jobs) == (1, "backends/memory", 3, True, 1)
    assert one.argv[:2] == ["sh", "-c"]
    assert one.stderr.startswith("trouble")
    assert began <= one.start_time.ToDatetime(UTC) <= datetime.now(UTC)
    assert one.duration.ToMicroseconds() > 0
    assert SECRET not in str(one)
    assert "[redacted]" in one.stderr
    assert "[redacted]" in one.argv[-1]
    async with with_system.parts.database.read() as connection:
        rows = (await connection.execute(select(tables.command))).all()
    assert SECRET not in str(rows)


async def test_command_that_names_one_job_is_shown_for_no_other(with_system: Scheduler, system: Spoken) -> None:
    system.each, system.command = True, ("true",)
    names = await queued(with_system, 3)
    for name in names:
        found = submitted(await until(with_system, name, lambda found: bool(submitted(found))))
        job = await with_system.get(name)
        assert [one.argv[-1] for one in found] == [job.attempts[0].uid.replace("-", "")]


async def test_failed_looks_are_shown_and_of_the_others_the_latest(with_system: Scheduler, system: Spoken) -> None:
    def polled(found: Sequence[JobCommand]) -> list[JobCommand]:
        return about(found, JobCommand.OPERATION_POLL)

    [name] = await queued(with_system)
    first = polled(await until(with_system, name, lambda found: bool(polled(found))))
    later = polled(await until(with_system, name, lambda found: [one.uid for one in polled(found)] > [first[0].uid]))
    assert [one.failed for one in later] == [False]
    system.poll_command = ("sh", "-c", "echo no answer from the server >&2; exit 1")
    found = await until(with_system, name, lambda found: sum(one.failed for one in polled(found)) >= 2)
    assert polled(found)[-1].stderr == "no answer from the server\n"


async def test_pages_give_every_command_once_in_the_order_of_time(with_system: Scheduler, system: Spoken) -> None:
    [name] = await queued(with_system)
    system.poll_command = ("false",)
    await until(with_system, name, lambda found: len(found) >= 5)
    request, seen = pb.ListJobCommandsRequest(name=name, page_size=2), []
    while True:
        page = await with_system.stub.ListJobCommands(request)
        assert len(page.commands) <= 2
        seen += [one.uid for one in page.commands]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(seen) >= 5
    assert seen == sorted(set(seen))
    other = pb.ListJobCommandsRequest(name=name, page_size=2, attempt=1, page_token=request.page_token)
    with pytest.raises(grpc.aio.AioRpcError, match="page token"):
        await with_system.stub.ListJobCommands(other)


async def test_unknown_job_is_refused_and_another_attempt_has_nothing(with_system: Scheduler) -> None:
    [name] = await queued(with_system)
    await until(with_system, name, bool)
    assert await said(with_system, name, attempt=2) == []
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await said(with_system, "jobs/00000000-0000-7000-8000-000000000000")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_backend_that_runs_no_commands_writes_nothing(scheduler: Scheduler) -> None:
    [job] = await scheduler.run(shell("true"))
    await asyncio.sleep(0.2)
    assert await said(scheduler, job.name) == []
    assert await numbers(scheduler) == (0, 0)


async def numbers(scheduler: Scheduler) -> tuple[int, int]:
    async with scheduler.parts.database.read() as connection:
        count = [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (tables.command, tables.attempt_call)
        ]
    return count[0], count[1]


async def test_commands_are_forgotten_when_they_are_old(tmp_path: Path, database_url: str) -> None:
    system = Spoken()
    settings = {"scheduler": {"poll": 0.05, "retention_pause": 0.05, "retain_commands": 2}}
    urls = {"scheduler": database_url}
    async with serve(
        memory_scheduler(system), state=tmp_path / "state", database_urls=urls, settings=settings
    ) as served:
        scheduler = Scheduler(served)
        [name] = await queued(scheduler)
        await until(scheduler, name, lambda found: bool(submitted(found)))
        await until(scheduler, name, lambda found: not submitted(found))
        assert (await numbers(scheduler))[1] == 0


async def test_only_the_newest_looks_at_a_backend_are_kept(with_system: Scheduler) -> None:
    transcript = with_system.parts.desk.transcript
    for exit_code in (0, 1):
        with transcript.look("elsewhere", JobCommand.OPERATION_POLL, 7):
            for number in range(300):
                commands.note(["look", str(number)], exit_code, "", datetime.now(UTC), 0.1)
        await transcript.write()
    async with with_system.parts.database.read() as connection:
        table = tables.command
        query = select(table.c.argv, table.c.failed).where(table.c.backend == "elsewhere").order_by(table.c.uid)
        rows = (await connection.execute(query)).all()
    assert [row.argv[1] for row in rows if not row.failed] == [str(number) for number in range(100, 300)]
    assert sum(row.failed for row in rows) == 300


async def test_thousand_commands_are_written_with_two_statements(with_system: Scheduler) -> None:
    transcript, database = with_system.parts.desk.transcript, with_system.parts.database
    attempts = [f"0198a000-0000-7000-8000-{number:012x}" for number in range(1000)]

    with transcript.of("elsewhere", JobCommand.OPERATION_SUBMIT, attempts):
        for attempt in attempts:
            commands.note(["at", attempt.replace("-", ""), "\0odd"], 0, "", datetime.now(UTC), 0.1)
    with count_statements(database) as statements:
        await transcript.write()
    written = [text for text in statements if text.startswith(("INSERT INTO command", "INSERT INTO attempt_call"))]
    assert len(written) == 2
    async with database.read() as connection:
        named = (
            await connection.execute(select(tables.command.c.attempt).where(tables.command.c.backend == "elsewhere"))
        ).scalars()
        assert set(named) == set(attempts)


async def test_trouble_with_the_transcript_is_no_trouble_for_the_jobs(
    with_system: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_system.parts.database.write() as connection:
        await connection.run_sync(tables.command.drop)
    [name] = await queued(with_system)
    async with asyncio.timeout(5):
        while "transcript.lost" not in caplog.text:
            await asyncio.sleep(0.02)
    assert (await with_system.get(name)).status.state == JobState.JOB_STATE_QUEUED


async def test_duration_and_odd_statuses_are_told(with_system: Scheduler) -> None:
    [name] = await queued(with_system)
    attempt = (await with_system.get(name)).attempts[0].uid
    transcript = with_system.parts.desk.transcript
    with transcript.of("memory", JobCommand.OPERATION_CANCEL, [attempt]):
        for status in (200, 404, None):
            commands.note(["DELETE", "https://ce/jobs/1"], status, "", datetime.now(UTC), 1.5)
    await transcript.write()
    found = about(await said(with_system, name), JobCommand.OPERATION_CANCEL)
    assert [one.failed for one in found] == [False, True, True]
    assert [one.exit_code if one.HasField("exit_code") else None for one in found] == [200, 404, None]
    assert found[0].duration.ToTimedelta() == timedelta(seconds=1.5)
