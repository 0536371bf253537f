"""What becomes of jobs whose backend wants to see a credential that is not good."""

import asyncio
import os
import time
import urllib.request
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from khomas.api.common.v1.event_pb2 import WatchEventsRequest
from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.api.scheduler.v1.credential_pb2 import Credential
from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.config import ConfigError, TelemetrySettings
from khomas.kit.hosting import reserved_socket
from khomas.kit.telemetry.setup import recording
from khomas.kit.testing import serve
from khomas.scheduler.app import service
from khomas.scheduler.backends.interface import State
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.placement.sites import open_sites
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler

FAST = {"poll": 0.05, "initial_backoff": 0.05, "collect_after": 0.2, "find_pause": 0.05, "heartbeat_timeout": 0.5}
QUEUED, RUNNING, SUCCEEDED = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_SUCCEEDED


class TokenFile:
    """A token that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, seconds: float) -> None:
        """Replace it by one that lasts so long."""
        now = time.time()
        claims = {"sub": "robot", "iat": now - 60, "exp": now + seconds, "scope": "compute.create"}
        new = self.path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(jwt.encode(claims, "a key that nobody checks here, of 32 bytes", "HS256"))
        new.replace(self.path)


@pytest.fixture
def token(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "token")


@pytest.fixture
def system() -> BatchSystem:
    return BatchSystem()


def _settings(token: TokenFile, **options: Any) -> dict[str, Any]:
    credential = {"kind": "bearer", "options": {"file": token.path, "remedy": "get-token grid", **options}}
    keeper = {"look": 0.05, "renew_again": 0.1}
    return {**FAST, "credentials": {"grid": credential}, "keeper": keeper, "credential_margin": 1}


@pytest.fixture
async def scheduler(tmp_path: Path, token: TokenFile, system: BatchSystem) -> AsyncIterator[Scheduler]:
    settings = {"scheduler": _settings(token)}
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=settings) as served:
        yield Scheduler(served)


async def _waits(scheduler: Scheduler, name: str) -> str:
    """Wait until a job waits for a credential; the sentence."""
    async with asyncio.timeout(10):
        while (job := await scheduler.get(name)).status.reason != Reason.REASON_WAIT_CREDENTIAL:
            await asyncio.sleep(0.02)
    assert job.status.state == JobState.JOB_STATE_PENDING
    return job.status.message


async def _credential(scheduler: Scheduler, state: "Credential.State.ValueType") -> Credential:
    """Wait until the credential is in this state."""
    async with asyncio.timeout(10):
        while True:
            found = (await scheduler.stub.ListCredentials(pb.ListCredentialsRequest())).credentials[0]
            if found.state == state:
                return found
            await asyncio.sleep(0.02)


async def test_jobs_wait_for_a_missing_credential_and_run_once_it_is_there(
    scheduler: Scheduler, token: TokenFile, system: BatchSystem
) -> None:
    jobs = await scheduler.submit(*[shell("true", resources={"wall_time": "60s"}) for _ in range(5)])
    said = [await _waits(scheduler, job.name) for job in jobs]
    assert all("the credential grid cannot be used" in one and "since 20" in one for one in said)
    assert all(one.endswith("; renew it: get-token grid") for one in said)
    assert system.submitted == []
    token.write(3600)
    for job in jobs:
        await scheduler.wait(job.name, [QUEUED])
    for one in system.going:
        system.end(one)
    ended = [await scheduler.wait(job.name) for job in jobs]
    assert [len(job.attempts) for job in ended] == [1] * 5
    assert {job.status.state for job in ended} == {SUCCEEDED}
    assert len(system.submitted) == len(set(system.submitted)) == 5


async def test_jobs_that_are_queued_when_it_expires_are_kept_and_go_on_after_renewal(
    scheduler: Scheduler, token: TokenFile, system: BatchSystem
) -> None:
    token.write(3)
    handed, *_ = await scheduler.submit(shell("true", resources={"wall_time": "1s"}))
    await scheduler.wait(handed.name, [QUEUED])
    await _credential(scheduler, Credential.STATE_EXPIRED)
    late, *_ = await scheduler.submit(shell("true", resources={"wall_time": "1s"}))
    assert "the credential grid expired at 20" in await _waits(scheduler, late.name)
    # A server that lets nobody in without a credential: what it answers must count for nothing.
    system.answers = False
    await asyncio.sleep(0.8)  # longer than the heartbeat
    assert (await scheduler.get(handed.name)).status.state == QUEUED
    system.answers = True
    token.write(3600)
    await scheduler.wait(late.name, [QUEUED])
    for one in system.going:
        system.end(one)
    ended = [await scheduler.wait(job.name) for job in (handed, late)]
    assert [(job.status.state, len(job.attempts)) for job in ended] == [(SUCCEEDED, 1), (SUCCEEDED, 1)]
    assert len(system.submitted) == 2


async def test_job_that_vanishes_without_credential_is_not_lost(
    tmp_path: Path, token: TokenFile, system: BatchSystem
) -> None:
    settings = _settings(token) | {"lost_after_polls": 2, "lost_after": 0.1}
    token.write(2)
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings={"scheduler": settings}) as served:
        scheduler = Scheduler(served)
        job, *_ = await scheduler.submit(shell("true"))
        await scheduler.wait(job.name, [QUEUED])
        (one,) = system.going
        await _credential(scheduler, Credential.STATE_EXPIRED)
        # An anonymous caller sees nothing: the job seems to be gone.
        hidden = system.state.pop(one)
        await asyncio.sleep(0.5)
        assert (await scheduler.get(job.name)).status.state == QUEUED
        system.state[one] = hidden
        token.write(3600)
        system.end(one)
        assert (await scheduler.wait(job.name)).status.state == SUCCEEDED


async def test_handover_of_unknown_outcome_is_not_repeated_while_the_credential_is_expired(
    scheduler: Scheduler, token: TokenFile, system: BatchSystem
) -> None:
    from khomas.scheduler.testing.backend import Handover

    token.write(2.5)
    system.handover = Handover.ANSWER_LOST
    job, *_ = await scheduler.submit(shell("true", resources={"wall_time": "1s"}))
    async with asyncio.timeout(10):
        while not system.submitted:
            await asyncio.sleep(0.005)
    hidden = dict(system.state)
    system.state.clear()
    token.write(-1)
    await _credential(scheduler, Credential.STATE_EXPIRED)
    await asyncio.sleep(0.5)
    system.state.update(hidden)
    system.handover = Handover.ACCEPT
    token.write(3600)
    await scheduler.wait(job.name, [QUEUED])
    assert len(system.submitted) == 1


@pytest.mark.parametrize(("wall", "runs"), [("1700s", True), ("1900s", False)])
async def test_credential_must_last_as_long_as_the_job(
    scheduler: Scheduler, token: TokenFile, system: BatchSystem, wall: str, runs: bool
) -> None:
    token.write(1800)
    await _credential(scheduler, Credential.STATE_VALID)
    job, *_ = await scheduler.submit(shell("true", resources={"wall_time": wall}))
    if runs:
        await scheduler.wait(job.name, [QUEUED])
    else:
        said = await _waits(scheduler, job.name)
        assert "expires at 20" in said
        assert "before a wall time of 0:31:40 would end" in said
    assert len(system.submitted) == runs


async def test_credential_that_is_kept_fresh_need_not_last_as_long_as_the_job(
    tmp_path: Path, token: TokenFile, system: BatchSystem
) -> None:
    token.write(600)
    settings = {"scheduler": _settings(token, kept_fresh=True)}
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=settings) as served:
        scheduler = Scheduler(served)
        job, *_ = await scheduler.submit(shell("true", resources={"wall_time": "86400s"}))
        await scheduler.wait(job.name, [QUEUED])


async def test_why_names_the_credential_and_the_command_that_renews_it(scheduler: Scheduler, token: TokenFile) -> None:
    token.write(-30)
    job, *_ = await scheduler.submit(shell("true"))
    await _waits(scheduler, job.name)
    why = await scheduler.stub.ExplainJob(pb.ExplainJobRequest(name=job.name))
    assert why.reason == "WAIT_CREDENTIAL"
    assert "the credential grid expired at 20" in why.summary
    assert [(one.who, one.command) for one in why.remedies] == [("operator", "get-token grid")]
    assert any(one.startswith("memory is not asked: the credential grid expired") for one in why.details)


async def test_credentials_are_listed_with_what_uses_them(scheduler: Scheduler, token: TokenFile) -> None:
    token.write(3600)
    found = await _credential(scheduler, Credential.STATE_VALID)
    assert (found.name, found.kind, found.subject) == ("credentials/grid", "bearer", "robot")
    assert (list(found.can), list(found.used_by)) == (["compute.create"], ["backends/memory"])
    assert abs(found.expire_time.seconds - time.time() - 3600) < 30
    os.chmod(token.path, 0o644)  # noqa: PTH101
    exposed = await _credential(scheduler, Credential.STATE_MISSING)
    assert exposed.remedy == f"chmod 600 {token.path}"
    assert "can be used by others (mode 644)" in exposed.message


async def test_each_step_is_an_event_once(scheduler: Scheduler, token: TokenFile) -> None:
    kinds, last = [], Credential()
    async with asyncio.timeout(10):
        request = WatchEventsRequest(filter='kind = "scheduler.credential.*"')
        async for batch in scheduler.stub.WatchEvents(request):
            for event in batch.events:
                kinds.append(event.kind.removeprefix("scheduler.credential."))
                event.resource.Unpack(last)
            if kinds == ["missing"]:
                token.write(3600)
            elif kinds == ["missing", "renewed"]:
                await asyncio.sleep(0.3)
                token.write(-1)
            elif kinds:
                break
    await asyncio.sleep(0.3)
    again = WatchEventsRequest(filter='kind = "scheduler.credential.*"', until_now=True)
    events = [event async for batch in scheduler.stub.WatchEvents(again) for event in batch.events]
    assert kinds == ["missing", "renewed", "expired"]
    assert len(events) == 3
    assert last.message.startswith("grid expired at 20")
    assert last.message.endswith("; renew it: get-token grid")


async def test_time_that_is_left_is_a_metric(tmp_path: Path, token: TokenFile, system: BatchSystem) -> None:
    token.write(3600)
    with reserved_socket("127.0.0.1:0") as bound:
        listen = f"127.0.0.1:{bound.getsockname()[1]}"
    with recording("scheduler", TelemetrySettings(metrics_listen=listen)) as recorder:
        settings = {"scheduler": _settings(token)}
        services = memory_scheduler(system)
        async with serve(services, state=tmp_path / "state", settings=settings, recorder=recorder):
            text = await asyncio.to_thread(_scraped, f"http://{listen}/metrics")
    (line,) = [one for one in text.splitlines() if one.startswith("khomas_credential_seconds_left{")]
    assert 'credential="grid",kind="bearer"' in line
    assert 3500 < float(line.rpartition(" ")[2]) < 3600


def _scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own loopback address
        return str(answer.read().decode())


async def test_running_job_is_explained_while_nobody_can_look_at_it(
    scheduler: Scheduler, token: TokenFile, system: BatchSystem
) -> None:
    token.write(3600)
    job, *_ = await scheduler.submit(shell("true"))
    await scheduler.wait(job.name, [QUEUED])
    system.start(system.submitted[0])
    await scheduler.wait(job.name, [RUNNING])
    assert system.state[system.submitted[0]] is State.RUNNING
    token.write(-1)
    await _credential(scheduler, Credential.STATE_EXPIRED)
    why = await scheduler.stub.ExplainJob(pb.ExplainJobRequest(name=job.name))
    assert any(one.startswith("memory is not asked: the credential grid expired") for one in why.details)


async def test_restart_resumes_what_waits(tmp_path: Path, token: TokenFile, system: BatchSystem) -> None:
    settings = {"scheduler": _settings(token)}
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=settings) as served:
        scheduler = Scheduler(served)
        job, *_ = await scheduler.submit(shell("true"))
        await _waits(scheduler, job.name)
    token.write(3600)
    async with serve(memory_scheduler(system), state=tmp_path / "state", settings=settings) as served:
        await Scheduler(served).wait(job.name, [QUEUED])
    assert len(system.submitted) == 1


async def test_many_waiting_jobs_are_woken_together(
    scheduler: Scheduler, token: TokenFile, system: BatchSystem
) -> None:
    jobs = await scheduler.submit(*[shell("true") for _ in range(900)])
    await _waits(scheduler, jobs[-1].name)
    began = time.monotonic()
    token.write(3600)
    async with asyncio.timeout(30):
        while len(system.submitted) < 900:
            await asyncio.sleep(0.02)
    assert len(set(system.submitted)) == 900
    assert time.monotonic() - began < 20


def _opened(tmp_path: Path, backend: BackendSettings, **credentials: Any) -> None:
    settings = SchedulerSettings(backends={"here": backend}, credentials=credentials)
    open_sites(settings, tmp_path)


def test_unknown_credential_of_a_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backends\.here\.credential: there is no credential gird, only grid"):
        _opened(tmp_path, BackendSettings(kind="local", credential="gird"), grid={"kind": "bearer"})


def test_credential_that_a_backend_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a backend of kind local has no use for one of kind bearer"):
        _opened(tmp_path, BackendSettings(kind="local", credential="grid"), grid={"kind": "bearer"})


async def test_scheduler_without_credentials_lists_none(tmp_path: Path) -> None:
    async with serve(service, state=tmp_path / "state", settings={"scheduler": FAST}) as served:
        answer = await Scheduler(served).stub.ListCredentials(pb.ListCredentialsRequest())
    assert list(answer.credentials) == []


def test_margin_is_asked_for_beyond_the_wall_time() -> None:
    assert SchedulerSettings().credential_margin == timedelta(minutes=5)
