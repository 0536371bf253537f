"""Grid Engine: the conformance suite against a real one, and what is its own."""

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from khomas.scheduler.backends import commands, grid_engine_answers
from khomas.scheduler.backends.grid_engine import GridEngineSettings, open_grid_engine
from khomas.scheduler.backends.interface import Backend, Observation, Seen, State, SubmitItem, Submitted, Usage
from khomas.scheduler.conformance import GRACE, BackendConformance, OpenBackend, job, shell, token
from tests.testbeds import grid_engine
from tests.testbeds.grid_engine import GridEngine

RECORDED = Path(__file__).parent / "recorded" / "grid_engine"


@pytest.fixture(scope="session")
def engine() -> Iterator[GridEngine]:
    """One Grid Engine for all tests; many slots, since a round of its scheduler takes a second."""
    # Not in pytest's own folder, which every session shuts to other users: the daemons are not root.
    with tempfile.TemporaryDirectory(prefix="khomas-grid-engine-") as folder, grid_engine.running(Path(folder)) as bed:
        yield bed


def settings_of(engine: GridEngine, spool: Path, **options: Any) -> GridEngineSettings:
    return GridEngineSettings(
        spool=spool,
        prefix=engine.prefix,
        tools=str(engine.tools),
        root=engine.root,
        cell=engine.cell,
        qmaster_port=engine.qmaster_port,
        execd_port=engine.execd_port,
        parallel_environment=engine.parallel_environment,
        **{"drmaa_library": str(engine.drmaa_library), **options},
    )


@pytest.fixture
def settings(engine: GridEngine, tmp_path: Path) -> GridEngineSettings:
    return settings_of(engine, tmp_path / "spool")


@pytest.fixture
def open_backend(settings: GridEngineSettings) -> OpenBackend:
    return lambda: open_grid_engine(settings)


@pytest.fixture
async def backend(open_backend: OpenBackend) -> AsyncIterator[Backend]:
    backend = open_backend()
    yield backend
    await backend.aclose()


@pytest.mark.timeout(900)
class TestGridEngine(BackendConformance):
    """Grid Engine keeps the contract, with submissions by DRMAA."""

    # A thousand tasks take a minute of a quiet machine with two cores, and as much longer as others are at work.
    patience_s = 120.0
    patience_of_thousand_s = 600.0


def read(name: str) -> str:
    return (RECORDED / name).read_text()


def test_jobs_and_tasks_are_read() -> None:
    rows = grid_engine_answers.parse_jobs(read("qstat.xml"))
    started = datetime(2026, 11, 21, 8, 10, 32, tzinfo=UTC)
    assert [(row.native_id, row.name, row.code, row.queue, row.node, row.start_time) for row in rows] == [
        ("1", "k0a1", "r", "batch.q", "vm", started),
        ("2.3", "k0a2", "dr", "batch.q", "vm", started),
        ("3", "k0held", "hqw", "", "", None),
        ("9", "kerr", "Eqw", "", "", None),
    ]


def test_letters_of_states_are_translated() -> None:
    states = {
        code: grid_engine_answers.state_of(code) for code in ("qw", "hRwq", "t", "dr", "Rr", "S", "Ts", "Eqw", "")
    }
    assert states == {
        "qw": State.QUEUED,
        "hRwq": State.QUEUED,
        "t": State.RUNNING,
        "dr": State.RUNNING,
        "Rr": State.RUNNING,
        "S": State.SUSPENDED,
        "Ts": State.SUSPENDED,
        "Eqw": State.FAILED,
        "": State.UNKNOWN,
    }


def test_accounting_is_read_and_half_a_line_left_out() -> None:
    accounts = list(grid_engine_answers.parse_accounting(read("accounting").splitlines(keepends=True)))
    assert [(one.native_id, one.failed, one.exit_status) for one in accounts] == [
        ("2.1", 0, 0),
        ("4", 0, 0),
        ("7.1", 100, 137),
    ]
    usage = Usage(wall_s=2, cpu_user_s=0.002985, cpu_system_s=0.008864, max_memory_bytes=4564 << 10)
    assert accounts[0].usage == usage
    assert (accounts[0].queue, accounts[0].node) == ("batch.q", "vm")


def test_queues_are_told_with_what_is_wrong_with_them() -> None:
    queues = grid_engine_answers.parse_queues(read("queues.xml"), read("hosts.xml"))
    assert [(one.queue, one.cpu_milli, one.free_cpu_milli, one.message, one.closed) for one in queues] == [
        ("batch.q", 16000, 8000, "", False),
        ("broken.q", 4000, 0, "vm: load alarm, host does not answer, error", True),
    ]


def test_queue_with_one_good_instance_is_open() -> None:
    [host] = re.findall(r"(?s)<host name='vm'>.*</host>", read("hosts.xml"))
    second = host.replace("'vm'", "'vm2'").replace(">auE<", ">a<")
    queues = grid_engine_answers.parse_queues(read("queues.xml"), read("hosts.xml").replace(host, host + second))
    assert [one.closed for one in queues] == [False, False]


class TestGridEngineAlone:
    """What only Grid Engine has."""

    async def test_job_of_two_cores_takes_two_slots_of_its_queue(self, engine: GridEngine, backend: Backend) -> None:
        item = replace(job("sleep", "60", resources={"cpu_milli": 1200, "wall_time_s": 90}), queue=engine.queue)
        [outcome] = await backend.submit([item])
        await until(backend, outcome.native_id, State.RUNNING)
        told = engine.run("qstat", "-j", outcome.native_id)
        assert "smp range: 2" in told
        assert "h_rt=390" in told
        await backend.cancel([outcome.native_id], GRACE)
        assert (await ended(backend, outcome.native_id)).state == State.CANCELLED

    @pytest.mark.parametrize("drmaa", [True, False])
    async def test_unknown_queue_is_refused_and_leaves_nothing(
        self, engine: GridEngine, tmp_path: Path, drmaa: bool
    ) -> None:
        backend = open_grid_engine(by(engine, tmp_path, drmaa=drmaa))
        items = [SubmitItem(token(), {"command": ["true"]}, queue="nosuch.q"), job("true")]
        outcomes = await backend.submit(items)
        assert [one.kind for one in outcomes] == [Submitted.REJECTED, Submitted.ACCEPTED]
        assert "nosuch.q" in outcomes[0].message
        assert await backend.find([items[0].token]) == {}

    async def test_memory_is_asked_for_by_core_where_the_site_says_how(
        self, engine: GridEngine, settings: GridEngineSettings
    ) -> None:
        backend = open_grid_engine(replace(settings, memory_resource="h_vmem"))
        item = job("sleep", "2", resources={"cpu_milli": 2000, "memory_bytes": 3 << 30})
        native = {"priority": -5, "resources": {"arch": "lx-*"}}
        [outcome] = await backend.submit([replace(item, native=native)])
        told = engine.run("qstat", "-j", outcome.native_id)
        assert "h_vmem=1536M" in told
        assert "arch=lx-*" in told
        assert (await ended(backend, outcome.native_id)).state == State.SUCCEEDED

    # DRMAA refuses what no queue can run, qsub lets it wait.
    @pytest.mark.parametrize(("drmaa", "kind"), [(True, Submitted.REJECTED), (False, Submitted.ACCEPTED)])
    async def test_job_keeps_off_the_nodes_that_it_is_to_avoid(
        self, engine: GridEngine, tmp_path: Path, drmaa: bool, kind: Submitted
    ) -> None:
        backend = open_grid_engine(by(engine, tmp_path, drmaa=drmaa))
        [first] = await backend.submit([job("true")])
        node = (await ended(backend, first.native_id)).node
        [never, elsewhere] = await backend.submit(
            [replace(job("true"), avoid_nodes=("n1", node)), replace(job("true"), avoid_nodes=("n1", "n2"))]
        )
        assert (await ended(backend, elsewhere.native_id)).state == State.SUCCEEDED
        assert (never.kind, "no suitable queues" in never.message) == (kind, drmaa)
        seen = await look(backend, never.native_id)
        assert (seen.seen, seen.native_state) == ((Seen.ABSENT, "") if drmaa else (Seen.PRESENT, "qw"))
        await backend.cancel([never.native_id], GRACE)

    @pytest.mark.parametrize("drmaa", [True, False])
    async def test_full_system_is_tried_again_later(self, engine: GridEngine, tmp_path: Path, drmaa: bool) -> None:
        backend = open_grid_engine(by(engine, tmp_path, drmaa=drmaa))
        [outcome] = await backend.submit([job("sleep", "60")])
        engine.change(max_u_jobs="1")
        try:
            item = job("true")
            [refused] = await backend.submit([item])
        finally:
            engine.change(max_u_jobs="0")
            await backend.cancel([outcome.native_id], GRACE)
            await ended(backend, outcome.native_id)
        assert (refused.kind, "jobs are allowed per user" in refused.message) == (Submitted.THROTTLED, True)
        assert await backend.find([item.token]) == {}

    @pytest.mark.parametrize(
        "native", [{"project": "x -q other"}, {"resources": "gpu"}, {"resources": {"a": "1 -b"}}, {"priority": "high"}]
    )
    async def test_option_that_cannot_be_is_refused(self, backend: Backend, native: dict[str, Any]) -> None:
        item = SubmitItem(token(), {"command": ["true"]}, native=native)
        [outcome] = await backend.submit([item])
        assert (outcome.kind, outcome.message != "") == (Submitted.REJECTED, True)

    async def test_qsub_does_the_same_as_drmaa(self, engine: GridEngine, tmp_path: Path) -> None:
        backend = open_grid_engine(by(engine, tmp_path, drmaa=False))
        items = [shell(f"echo {number}") for number in range(3)]
        with commands.recording() as ran:
            outcomes = await backend.submit(items)
        assert [one.argv[0] for one in ran] == [str(engine.tools / "qsub")]
        for number, outcome in enumerate(outcomes):
            assert (await ended(backend, outcome.native_id)).state == State.SUCCEEDED
            assert (await backend.peek(outcome.native_id, "stdout", 0, 9)).data == f"{number}\n".encode()

    async def test_jobs_that_differ_go_by_one_drmaa_session(self, backend: Backend) -> None:
        items = [job("true", resources={"wall_time_s": 100 + number}) for number in range(20)]
        with commands.recording() as ran:
            outcomes = await backend.submit(items)
        assert {one.kind for one in outcomes} == {Submitted.ACCEPTED}
        assert [(one.argv[0], one.exit_code) for one in ran] == [("drmaa", 0)] * 20
        for outcome in outcomes:
            assert (await ended(backend, outcome.native_id)).state == State.SUCCEEDED

    async def test_held_job_waits_until_it_is_released(self, engine: GridEngine, backend: Backend) -> None:
        [outcome] = await backend.submit([job("true")])
        engine.run("qmod", "-d", engine.queue)
        try:
            [waiting] = [one.native_id for one in await backend.submit([job("true")])]
            [first, second] = [one.native_id for one in await backend.submit([job("true"), job("true")])]
            assert [one.done for one in await backend.hold([waiting, second], True)] == [True, True]
            await until(backend, waiting, State.QUEUED, "hqw")
        finally:
            engine.run("qmod", "-e", engine.queue)
        for native_id in (outcome.native_id, first):
            assert (await ended(backend, native_id)).state == State.SUCCEEDED
        for native_id in (waiting, second):
            assert (await look(backend, native_id)).native_state == "hqw"
        await backend.hold([waiting, second], False)
        for native_id in (waiting, second):
            assert (await ended(backend, native_id)).state == State.SUCCEEDED

    async def test_queue_says_what_is_wrong_with_it(self, engine: GridEngine, backend: Backend) -> None:
        [queue] = await backend.list_resources()
        assert (queue.queue, queue.cpu_milli, queue.message) == (engine.queue, engine.slots * 1000, "")
        assert (queue.closed, queue.is_default) == (False, True)
        engine.run("qmod", "-d", engine.queue)
        try:
            [queue] = await backend.list_resources()
            assert ("disabled" in queue.message, queue.closed) == (True, True)
        finally:
            engine.run("qmod", "-e", engine.queue)

    async def test_wrapper_that_was_killed_is_told_by_the_accounting(self, backend: Backend) -> None:
        [outcome] = await backend.submit([shell("sleep 1; kill -9 $PPID; sleep 60")])
        seen = await ended(backend, outcome.native_id)
        assert (seen.state, seen.record, seen.native_state) == (State.FAILED, None, "failed 100")
        usage = (await backend.usage([outcome.native_id]))[outcome.native_id]
        assert 1 <= usage.wall_s < 60

    @pytest.mark.parametrize("script", ["sleep 60", "true"])
    async def test_submission_whose_end_nobody_noted_is_found_by_its_name(
        self, settings: GridEngineSettings, script: str
    ) -> None:
        items, backend = [shell(script), shell(script)], open_grid_engine(settings)
        before = [one.native_id for one in await backend.submit(items)]
        await until(backend, before[1], State.RUNNING, "r") if script != "true" else await ended(backend, before[1])
        for note in (*settings.spool.glob("natives/*"), *settings.spool.glob("batches/*/native")):
            note.unlink()
        backend = open_grid_engine(settings)
        assert await backend.find([one.token for one in items]) == dict(
            zip([one.token for one in items], before, strict=True)
        )
        assert [one.native_id for one in await backend.submit(items)] == before
        await backend.cancel(before, GRACE)
        for native_id in before:
            await ended(backend, native_id)

    async def test_master_that_is_away_is_no_answer_and_nothing_is_lost(
        self, engine: GridEngine, backend: Backend, tmp_path: Path
    ) -> None:
        running = shell(f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
        [native_id] = [one.native_id for one in await backend.submit([running])]
        await until(backend, native_id, State.RUNNING, "r")
        engine.stop_master()
        try:
            answer = await backend.poll([native_id])
            assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
            late = job("true")
            [refused] = await backend.submit([late])
            assert refused.kind is Submitted.THROTTLED
            (tmp_path / "go").touch()
        finally:
            engine.start_master()
        assert (await ended(backend, native_id)).state == State.SUCCEEDED
        [outcome] = await backend.submit([late])
        assert (await ended(backend, outcome.native_id)).state == State.SUCCEEDED

    async def test_frozen_master_is_given_up_at_the_deadline_and_nothing_runs_twice(
        self, settings: GridEngineSettings, engine: GridEngine, tmp_path: Path
    ) -> None:
        backend = open_grid_engine(replace(settings, command_seconds=3))
        [native_id] = [one.native_id for one in await backend.submit([job("sleep", "60")])]
        await until(backend, native_id, State.RUNNING, "r")
        engine.freeze_master(frozen=True)
        try:
            began = time.monotonic()
            answer = await backend.poll([native_id])
            assert (answer.complete, answer.observations[0].seen) == (False, Seen.NOT_ANSWERED)
            item = shell(f"echo ran >> {tmp_path}/ran")
            assert (await backend.submit([item]))[0].kind is Submitted.UNKNOWN
            assert time.monotonic() - began < 40
        finally:
            engine.freeze_master(frozen=False)
        await backend.find([item.token])
        [outcome] = await backend.submit([item])
        assert (await ended(backend, outcome.native_id)).state == State.SUCCEEDED
        await backend.cancel([native_id], GRACE)
        await ended(backend, native_id)
        assert (tmp_path / "ran").read_text() == "ran\n"


def by(engine: GridEngine, folder: Path, *, drmaa: bool) -> GridEngineSettings:
    return settings_of(engine, folder / "spool", drmaa_library=str(engine.drmaa_library) if drmaa else "")


async def look(backend: Backend, native_id: str) -> Observation:
    return (await backend.poll([native_id])).observations[0]


async def until(backend: Backend, native_id: str, state: State, code: str = "") -> Observation:
    deadline = time.monotonic() + 90
    while (seen := await look(backend, native_id)).state != state or code not in seen.native_state:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.1)
    return seen


async def ended(backend: Backend, native_id: str) -> Observation:
    deadline = time.monotonic() + 90
    while not (seen := await look(backend, native_id)).state.final:
        assert time.monotonic() < deadline, f"still {seen}"
        await asyncio.sleep(0.1)
    return seen
