"""Jobs whose backend wants real proxies and tickets: they wait while these are not good, and then run once."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from khomas.api.scheduler.v1.state_pb2 import JobState, Reason
from khomas.kit.testing import serve
from khomas.scheduler.testing import Scheduler, shell
from khomas.scheduler.testing.backend import BatchSystem, memory_scheduler
from tests.testbeds import kerberos, myproxy
from tests.testbeds.kerberos import KerberosBed
from tests.testbeds.myproxy import MyProxyBed

QUEUED, SUCCEEDED = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_SUCCEEDED
KHOMAS = Path(sys.executable).parent / "khomas"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MyProxyBed]:
    with myproxy.running(tmp_path_factory.mktemp("myproxy")) as running:
        yield running


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KerberosBed]:
    with kerberos.running(tmp_path_factory.mktemp("kerberos")) as running:
        yield running


@asynccontextmanager
async def _scheduler(state: Path, system: BatchSystem, credential: dict[str, Any]) -> AsyncIterator[Scheduler]:
    settings = {
        "poll": 0.05,
        "find_pause": 0.1,
        "credentials": {"grid": credential},
        "keeper": {"look": 0.1, "renew_again": 0.2},
        "credential_margin": 1,
    }
    async with serve(memory_scheduler(system), state=state, settings={"scheduler": settings}) as served:
        yield Scheduler(served)


async def _waits(scheduler: Scheduler, name: str) -> str:
    async with asyncio.timeout(20):
        while (job := await scheduler.get(name)).status.reason != Reason.REASON_WAIT_CREDENTIAL:
            await asyncio.sleep(0.05)
    return job.status.message


async def _ended(scheduler: Scheduler, system: BatchSystem, *names: str) -> list[tuple[int, int]]:
    """State and attempts of jobs, after the batch system has ended them."""
    for name in names:
        await scheduler.wait(name, [QUEUED])
    for token in system.going:
        system.end(token)
    jobs = [await scheduler.wait(name) for name in names]
    return [(job.status.state, len(job.attempts)) for job in jobs]


async def _command(scheduler: Scheduler, *arguments: str) -> str:
    """What `khomas` prints."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("KHOMAS_", "BEARER_TOKEN"))},
        "KHOMAS_ENDPOINT": scheduler.served.endpoint,
        "BEARER_TOKEN": scheduler.served.token(),
    }
    process = await asyncio.create_subprocess_exec(
        str(KHOMAS), *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return said.decode()


async def test_job_runs_as_soon_as_myproxy_gives_a_proxy(grid: MyProxyBed, tmp_path: Path) -> None:
    secret, system = tmp_path / "passphrase", BatchSystem()
    server = {
        "server": grid.host,
        "port": grid.port,
        "username": myproxy.USERNAME,
        "passphrase_file": secret,
        "env": grid.environment,
    }
    credential = {"kind": "x509", "options": {"file": tmp_path / "proxy", "myproxy": server}}
    async with _scheduler(tmp_path / "state", system, credential) as scheduler:
        job, *_ = await scheduler.submit(shell("true", resources={"wall_time": "3600s"}))
        said = await _waits(scheduler, job.name)
        assert f"{tmp_path / 'proxy'} cannot be read: No such file or directory" in said
        assert f"renew it: myproxy-logon -s localhost -p {grid.port} -l ada" in said
        secret.touch(mode=0o600)
        secret.write_text(myproxy.PASSPHRASE)
        assert await _ended(scheduler, system, job.name) == [(SUCCEEDED, 1)]
        (row,) = [json.loads(line) for line in (await _command(scheduler, "credentials", "--json")).splitlines()]
    assert (row["id"], row["kind"], row["state"], row["renews"]) == ("grid", "x509", "VALID", True)
    assert (row["subject"], row["used_by"]) == (grid.voms.user, ["memory"])
    assert len(system.submitted) == 1


async def test_jobs_wait_for_new_tickets_and_nothing_is_lost(realm: KerberosBed, tmp_path: Path) -> None:
    # Enough for a short job on a busy machine, not for a long one.
    system, cache = BatchSystem(), realm.tickets(tmp_path / "cache", "-l", "2min")
    credential = {"kind": "kerberos", "options": {"cache": cache, "config": realm.config}}
    async with _scheduler(tmp_path / "state", system, credential) as scheduler:
        early, *_ = await scheduler.submit(shell("true", resources={"wall_time": "1s"}))
        await scheduler.wait(early.name, [QUEUED])
        late = await scheduler.submit(*[shell("true", resources={"wall_time": "600s"}) for _ in range(3)])
        for job in late:
            assert "before a wall time of 0:10:00 would end" in await _waits(scheduler, job.name)
        realm.tickets(cache, "-l", "3s")
        async with asyncio.timeout(30):
            while "EXPIRED" not in (shown := await _command(scheduler, "credentials")):
                await asyncio.sleep(0.2)
        assert kerberos.PERSON in shown
        why = await _command(scheduler, "why", late[0].name.removeprefix("jobs/"))
        assert f"kinit -c FILE:{cache}" in why
        realm.tickets(cache, "-l", "2h")
        ended = await _ended(scheduler, system, early.name, *[job.name for job in late])
    assert ended == [(SUCCEEDED, 1)] * 4
    assert len(system.submitted) == len(set(system.submitted)) == 4


async def test_keytab_keeps_tickets_alive(realm: KerberosBed, tmp_path: Path) -> None:
    cache, system = tmp_path / "cache", BatchSystem()
    options = {
        "cache": cache,
        "config": realm.config,
        "keytab": realm.keytab,
        "principal": kerberos.ROBOT,
        "lifetime": "6s",
    }
    async with _scheduler(tmp_path / "state", system, {"kind": "kerberos", "options": options}) as scheduler:
        job, *_ = await scheduler.submit(shell("true", resources={"wall_time": "3600s"}))
        await scheduler.wait(job.name, [QUEUED])
        await asyncio.sleep(8)  # longer than one ticket lasts
        assert realm.accepts(cache)
        other, *_ = await scheduler.submit(shell("true", resources={"wall_time": "3600s"}))
        assert await _ended(scheduler, system, job.name, other.name) == [(SUCCEEDED, 1), (SUCCEEDED, 1)]
