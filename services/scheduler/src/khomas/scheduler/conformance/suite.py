"""The test class."""

import asyncio
import base64
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from khomas.scheduler.backends.interface import (
    Backend,
    NotSupportedError,
    Seen,
    State,
    SubmitItem,
    Submitted,
)
from khomas.scheduler.conformance.jobs import GRACE, MIB, OpenBackend, chunks, job, kill_while, pause, shell, token
from khomas.scheduler.conformance.steps import Steps
from khomas.scheduler.conformance.traces import traces


class BackendConformance(Steps):
    """The suite. Systems that are slow to tell (see their notes) raise `patience_s`."""

    patience_of_thousand_s = 60.0
    # Jobs that run at once in one test; fewer where the system itself takes seconds for each.
    many = 1000
    # Of them so many run to their end before the others are cancelled.
    many_run = 100

    # --------------------------------------------------------------------------------------------------- submit

    async def test_submitted_job_has_a_native_id_and_runs(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [job("true")])
        assert native_id
        assert (await self.ended(backend, native_id)).state == State.SUCCEEDED

    async def test_nothing_to_submit_is_no_error(self, backend: Backend) -> None:
        assert await backend.submit([]) == []

    async def test_thousand_jobs_are_answered_in_order_run_and_are_cancelled(self, backend: Backend) -> None:
        items = [job("true") for _ in range(self.many)]
        outcomes = [outcome for chunk in chunks(items, backend) for outcome in await backend.submit(chunk)]
        assert [(outcome.token, outcome.kind) for outcome in outcomes] == [
            (item.token, Submitted.ACCEPTED) for item in items
        ]
        open_ones = {outcome.native_id for outcome in outcomes}
        assert len(open_ones) == self.many
        ends: dict[State, int] = {}
        deadline = time.monotonic() + self.patience_of_thousand_s
        while open_ones:
            assert time.monotonic() < deadline, f"{len(open_ones)} have not ended; the others: {ends}"
            for chunk in chunks(sorted(open_ones), backend):
                seen = (await backend.poll(chunk)).observations
                assert Seen.ABSENT not in {one.seen for one in seen}
                for one in seen:
                    if one.state.final:
                        open_ones.discard(one.native_id)
                        ends[one.state] = ends.get(one.state, 0) + 1
            if self.many_run <= ends.get(State.SUCCEEDED, 0) and State.CANCELLED not in ends:
                for chunk in chunks(sorted(open_ones), backend):
                    await backend.cancel(chunk, GRACE)
            await asyncio.sleep(10 * pause(backend))
        assert ends.keys() <= {State.SUCCEEDED, State.CANCELLED}

    async def test_token_submitted_again_is_the_same_job(self, backend: Backend, tmp_path: Path) -> None:
        item = shell(f"echo ran >> {tmp_path}/ran")
        first = await self.submitted(backend, [item])
        assert await self.submitted(backend, [item]) == first
        await self.ended(backend, first[0])
        assert await self.submitted(backend, [item]) == first
        await self.run(backend, job("true"))
        assert (tmp_path / "ran").read_text() == "ran\n"

    async def test_token_submitted_by_another_instance_is_the_same_job(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        item = shell(f"echo ran >> {tmp_path}/ran")
        first, second = open_backend(), open_backend()
        ids = await asyncio.gather(self.submitted(first, [item]), self.submitted(second, [item]))
        assert ids[0] == ids[1]
        await self.ended(first, ids[0][0])
        await self.run(first, job("true"))
        assert (tmp_path / "ran").read_text() == "ran\n"

    async def test_token_that_cannot_be_named_is_rejected_and_the_others_run(self, backend: Backend) -> None:
        items = [job("true"), SubmitItem("../evil", {"command": ["true"]}), job("true")]
        outcomes = await backend.submit(items)
        kinds = [outcome.kind for outcome in outcomes]
        assert kinds == [Submitted.ACCEPTED, Submitted.REJECTED, Submitted.ACCEPTED]
        assert outcomes[1].message
        assert (await self.ended(backend, outcomes[2].native_id)).state == State.SUCCEEDED

    async def test_unknown_native_option_is_rejected_by_name(self, backend: Backend) -> None:
        item = SubmitItem(token(), {"command": ["true"]}, native={"no-such-option": 1})
        [outcome] = await backend.submit([item])
        assert outcome.kind == Submitted.REJECTED
        assert "no-such-option" in outcome.message
        assert await backend.find([item.token]) == {}

    async def test_lost_answer_is_found_by_token(self, open_backend: OpenBackend) -> None:
        item = job("true")
        await self.submitted(open_backend(), [item])
        found = await open_backend().find([item.token, token()])
        assert list(found) == [item.token]

    async def test_service_that_is_killed_in_a_submission_hands_nothing_over_twice(
        self, open_backend: OpenBackend, tmp_path: Path
    ) -> None:
        for number, seconds in enumerate((0.0, 0.05, 0.15, 0.4)):
            ran = tmp_path / f"ran-{number}"
            items = [shell(f"echo {n} >> {ran}") for n in range(4)]
            await asyncio.to_thread(kill_while, lambda: open_backend().submit(items), seconds)  # noqa: B023
            backend = open_backend()
            outcomes = await backend.submit(items)
            while any(outcome.kind is Submitted.UNKNOWN for outcome in outcomes):
                await asyncio.sleep(pause(backend))
                outcomes = await backend.submit(items)
            assert {outcome.kind for outcome in outcomes} == {Submitted.ACCEPTED}, outcomes
            for outcome in outcomes:
                assert (await self.ended(backend, outcome.native_id)).state == State.SUCCEEDED
            await self.run(backend, job("true"))
            assert sorted(ran.read_text().split()) == ["0", "1", "2", "3"]

    async def test_ended_job_is_found_by_token(self, backend: Backend) -> None:
        item = job("true")
        await self.run(backend, item)
        assert list(await backend.find([item.token])) == [item.token]

    # ----------------------------------------------------------------------------------------------------- poll

    async def test_unknown_job_is_absent(self, backend: Backend) -> None:
        answer = await backend.poll([token()])
        assert answer.complete
        assert answer.observations[0].seen == Seen.ABSENT

    async def test_poll_for_nothing_is_no_error(self, backend: Backend) -> None:
        assert (await backend.poll([])).observations == []

    async def test_poll_answers_for_every_job_in_order(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("true") for _ in range(5)])
        wanted = [ids[3], token(), *ids]
        seen = (await backend.poll(wanted)).observations
        assert [one.native_id for one in seen] == wanted
        assert [one.seen for one in seen] == [Seen.PRESENT, Seen.ABSENT, *[Seen.PRESENT] * 5]

    async def test_job_is_present_from_its_submission_on(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [job("sleep", "0.3")])
        assert (await self.look(backend, native_id)).seen == Seen.PRESENT
        await self.ended(backend, native_id)

    async def test_running_job_says_where_and_since_when(self, backend: Backend) -> None:
        before = datetime.now(UTC)
        [native_id] = await self.submitted(backend, [job("sleep", "60")])
        seen = await self.wait_for(backend, native_id, State.RUNNING)
        async with asyncio.timeout(self.patience_s):
            while not seen.node or seen.start_time is None:  # some systems know the state first
                await asyncio.sleep(0.2)
                seen = await self.look(backend, native_id)
        assert before - timedelta(seconds=2) <= seen.start_time <= datetime.now(UTC)
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)

    async def test_running_job_tells_what_it_used_or_declares_that_it_cannot(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [shell("while :; do :; done", heartbeat_s=0.2)])
        await self.wait_for(backend, native_id, State.RUNNING)
        deadline = time.monotonic() + (self.patience_s if backend.capabilities.live_usage else 2)
        used = None
        while (used is None or used.cpu_user_s == 0) and time.monotonic() < deadline:
            await asyncio.sleep(pause(backend))
            used = (await backend.poll([native_id], measure=[native_id])).observations[0].usage
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)
        assert (used is not None) == backend.capabilities.live_usage
        assert used is None or (used.wall_s > 0 and used.cpu_user_s > 0), used

    async def test_ended_job_carries_its_exit_record(self, backend: Backend) -> None:
        item = job("true")
        record = await self.run(backend, item)
        assert (record["token"], record["exit_code"], record["reason"]) == (item.token, 0, 0)

    async def test_final_state_stays(self, backend: Backend) -> None:
        item = shell("exit 3")
        first = await self.run(backend, item)
        ids = await backend.find([item.token])
        assert (await self.look(backend, ids[item.token])).record == first

    async def test_another_instance_sees_the_same(self, open_backend: OpenBackend) -> None:
        item = job("true")
        record = await self.run(open_backend(), item)
        other = open_backend()
        ids = await other.find([item.token])
        assert (await self.look(other, ids[item.token])).record == record

    async def test_poll_with_a_cursor_tells_every_end(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", f"0.0{number}") for number in range(1, 10)])
        missing, cursor = set(ids), ""
        deadline = time.monotonic() + self.patience_s
        while missing and time.monotonic() < deadline:
            answer = await backend.poll(ids, cursor)
            missing -= {seen.native_id for seen in answer.observations if seen.state.final}
            cursor = answer.cursor
            await asyncio.sleep(0.02)
        assert not missing

    async def test_poll_with_a_cursor_tells_changes_once(self, backend: Backend) -> None:
        if not backend.capabilities.incremental_poll:
            return
        ids = await self.submitted(backend, [job("true")])
        await self.ended(backend, ids[0])
        await asyncio.sleep(0.1)
        cursor = (await backend.poll(ids)).cursor
        assert (await backend.poll(ids, cursor)).observations == []

    # --------------------------------------------------------------------------------------------------- cancel

    async def test_running_job_is_cancelled(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [job("sleep", "60")])
        await self.wait_for(backend, native_id, State.RUNNING)
        [outcome] = await backend.cancel([native_id], GRACE)
        assert (outcome.native_id, outcome.done) == (native_id, True)
        assert (await self.ended(backend, native_id)).state == State.CANCELLED

    async def test_job_cancelled_at_once_never_ends_in_success(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60") for _ in range(8)])
        await backend.cancel(ids, GRACE)
        assert {(await self.ended(backend, one)).state for one in ids} == {State.CANCELLED}

    async def test_waiting_job_is_cancelled_and_never_runs(self, backend: Backend, tmp_path: Path) -> None:
        queue = (await backend.list_resources())[0]
        cores = queue.cpu_milli or 1000
        everything = {"cpu_milli": min(cores, queue.max_cpu_milli or cores)}
        blockers = [job("sleep", "60", resources=everything) for _ in range(cores // everything["cpu_milli"])]
        ids = await self.submitted(backend, blockers)
        for native_id in ids:
            await self.wait_for(backend, native_id, State.RUNNING)
        [waiting] = await self.submitted(backend, [shell(f"touch {tmp_path}/ran", resources=everything)])
        assert (await self.look(backend, waiting)).state == State.QUEUED
        await backend.cancel([waiting], GRACE)
        assert (await self.ended(backend, waiting)).state == State.CANCELLED
        await backend.cancel(ids, GRACE)
        for native_id in ids:
            await self.ended(backend, native_id)
        assert not (tmp_path / "ran").exists()

    async def test_cancel_after_the_end_changes_nothing(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [job("true")])
        await self.ended(backend, native_id)
        assert [outcome.done for outcome in await backend.cancel([native_id], GRACE)] == [True]
        assert (await self.look(backend, native_id)).state == State.SUCCEEDED

    async def test_cancel_of_an_unknown_job_is_success(self, backend: Backend) -> None:
        assert [outcome.done for outcome in await backend.cancel([token()], GRACE)] == [True]

    async def test_cancel_twice_is_success(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [job("sleep", "60")])
        await backend.cancel([native_id], GRACE)
        assert [outcome.done for outcome in await backend.cancel([native_id], GRACE)] == [True]
        assert (await self.ended(backend, native_id)).state == State.CANCELLED

    async def test_cancelled_job_that_ignores_sigterm_is_killed(self, backend: Backend) -> None:
        item = shell("trap '' TERM; echo on; while :; do sleep 1; done", kill_grace_s=600)
        [native_id] = await self.submitted(backend, [item])
        await self.wait_for(backend, native_id, State.RUNNING)
        await backend.cancel([native_id], GRACE)
        assert (await self.ended(backend, native_id)).state == State.CANCELLED

    async def test_cancel_leaves_other_jobs_alone(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60"), job("sleep", "0.3")])
        await backend.cancel([ids[0]], GRACE)
        assert (await self.ended(backend, ids[1])).state == State.SUCCEEDED

    async def test_cancelled_job_leaves_its_slot_and_the_next_one_runs(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60") for _ in range(4)])
        await backend.cancel(ids, GRACE)
        assert (await self.run(backend, job("true")))["state"] == "SUCCEEDED"

    # ------------------------------------------------------------------------------------------------- how it ran

    async def test_exit_code_is_told(self, backend: Backend) -> None:
        record = await self.run(backend, shell("exit 7"))
        assert (record["state"], record["reason_name"], record["exit_code"]) == ("FAILED", "APP_EXIT_CODE", 7)

    async def test_signal_is_told(self, backend: Backend) -> None:
        record = await self.run(backend, shell("kill -9 $$"))
        assert (record["state"], record["reason_name"], record["signal"]) == ("FAILED", "APP_SIGNAL", 9)

    async def test_missing_program_is_told(self, backend: Backend) -> None:
        assert (await self.run(backend, job("/no/such/program")))["reason_name"] == "APP_NOT_FOUND"

    async def test_wall_time_is_a_limit(self, backend: Backend) -> None:
        item = job("sleep", "60", resources={"wall_time_s": 0.3}, kill_grace_s=0.2)
        assert (await self.run(backend, item))["reason_name"] == "LIMIT_WALL"

    async def test_memory_is_a_limit(self, backend: Backend) -> None:
        item = job("python3", "-S", "-c", f"x = bytearray({400 * MIB})", resources={"memory_bytes": 100 * MIB})
        assert (await self.run(backend, item))["reason_name"] == "LIMIT_MEMORY"

    async def test_job_that_ignores_sigterm_ends_at_its_wall_time(self, backend: Backend) -> None:
        item = shell("trap '' TERM; while :; do sleep 1; done", resources={"wall_time_s": 0.5}, kill_grace_s=0.3)
        assert (await self.run(backend, item))["reason_name"] == "LIMIT_WALL"

    async def test_disk_is_a_limit(self, backend: Backend) -> None:
        item = shell("yes > big; sleep 60", resources={"disk_bytes": 50 * MIB})
        assert (await self.run(backend, item))["reason_name"] == "LIMIT_DISK"

    async def test_log_size_is_a_limit(self, backend: Backend) -> None:
        item = shell("yes", log_bytes=MIB)
        assert (await self.run(backend, item))["reason_name"] == "LIMIT_LOG_SIZE"
        ids = await backend.find([item.token])
        assert MIB <= (await backend.peek(ids[item.token], "stdout", 0, 1)).size < MIB + 1000

    async def test_processes_that_a_job_leaves_behind_are_ended(self, backend: Backend) -> None:
        seconds = f"86400.{uuid.uuid4().int % 10**12}"
        record = await self.run(backend, shell(f"setsid sleep {seconds} & setsid nohup sleep {seconds} > /dev/null &"))
        assert (record["state"], record["stragglers"]) == ("SUCCEEDED", 2)
        assert await asyncio.to_thread(traces, seconds) == []

    async def test_job_that_is_ended_leaves_no_process_and_no_file(self, backend: Backend) -> None:
        seconds = f"86400.{uuid.uuid4().int % 10**12}"
        script = f"pwd; mktemp -d; touch left; setsid sleep {seconds} & trap '' TERM; sleep {seconds}; sleep {seconds}"
        item = shell(script, resources={"wall_time_s": 1}, kill_grace_s=0.2)
        assert (await self.run(backend, item))["reason_name"] == "LIMIT_WALL"
        ids = await backend.find([item.token])
        folders = (await backend.peek(ids[item.token], "stdout", 0, MIB)).data.decode().splitlines()
        assert len(folders) == 2
        assert await asyncio.to_thread(traces, seconds, folders) == []

    async def test_jobs_one_after_the_other_do_not_see_each_others_limits(self, backend: Backend) -> None:
        before = await self.printed(backend, shell("ulimit -d"))
        limited = await self.printed(backend, shell("ulimit -d", resources={"memory_bytes": 10 * MIB}))
        after = await self.printed(backend, shell("ulimit -d"))
        assert before == after != limited

    async def test_arguments_arrive_as_they_were(self, backend: Backend) -> None:
        arguments = ["two words", "", "ünïcödé 望遠鏡", "a'b\"c", "$HOME", "*", "back\\slash", "line\nend", "-n"]
        shown = await self.printed(backend, job("printf", "%s|", *arguments))
        assert shown == "|".join([*arguments, ""])

    async def test_environment_is_what_was_declared(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KHOMAS_TEST_LEAK", "1")
        lines = (await self.printed(backend, job("env", env={"A": "b ü=c"}))).splitlines()
        assert {"A=b ü=c", "KHOMAS_JOB=jobs/1", "KHOMAS_ATTEMPT=1"} <= set(lines)
        assert not [line for line in lines if "LEAK" in line]

    async def test_work_directory_is_empty_and_its_own(self, backend: Backend) -> None:
        first, second = shell("pwd; ls -A; touch mine"), shell("pwd; ls -A; touch mine")
        places = [await self.printed(backend, item) for item in (first, second)]
        assert [len(place.splitlines()) for place in places] == [1, 1]
        assert places[0] != places[1]

    async def test_input_comes_and_output_can_be_fetched(self, backend: Backend, tmp_path: Path) -> None:
        content = base64.b64encode(b"data").decode()
        inputs = [{"path": "in put", "content": content}]
        outputs = [{"glob": "o*", "sandbox": True}, {"glob": "*.dat"}]
        item = shell("cp 'in put' 'out put'; echo 1 > a.dat", inputs=inputs, outputs=outputs)
        record = await self.run(backend, item)
        ids = await backend.find([item.token])
        for entry in record["outputs"]:
            await backend.fetch_output(ids[item.token], entry["location"], str(tmp_path / entry["path"]))
        assert (tmp_path / "out put").read_bytes() == b"data"
        assert (tmp_path / "a.dat").read_bytes() == b"1\n"

    async def test_missing_output_fails_the_job(self, backend: Backend) -> None:
        record = await self.run(backend, job("true", outputs=[{"glob": "*.fits"}]))
        assert (record["state"], record["reason_name"]) == ("FAILED", "APP_OUTPUT_MISSING")

    # ----------------------------------------------------------------------------------------------------- logs

    async def test_both_streams_are_kept_apart(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [shell("echo out; echo err >&2; exit 1")])
        await self.ended(backend, native_id)
        assert (await backend.peek(native_id, "stdout", 0, 100)).data == b"out\n"
        assert (await backend.peek(native_id, "stderr", 0, 100)).data == b"err\n"

    async def test_log_is_read_by_pieces_and_from_the_end(self, backend: Backend) -> None:
        [native_id] = await self.submitted(backend, [shell("printf 0123456789")])
        await self.ended(backend, native_id)
        pieces = [await backend.peek(native_id, "stdout", *piece) for piece in ((2, 3), (-4, 100), (10, 9), (99, 9))]
        assert [(piece.offset, piece.data) for piece in pieces] == [(2, b"234"), (6, b"6789"), (10, b""), (10, b"")]
        assert {piece.size for piece in pieces} == {10}

    async def test_log_of_a_running_job_can_be_read(self, backend: Backend) -> None:
        if not backend.capabilities.peek:
            return
        [native_id] = await self.submitted(backend, [shell("echo now; exec sleep 60")])
        deadline = time.monotonic() + self.patience_s
        while not (await backend.peek(native_id, "stdout", 0, 100)).data:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert (await self.look(backend, native_id)).state == State.RUNNING
        await backend.cancel([native_id], GRACE)
        await self.ended(backend, native_id)

    async def test_log_of_an_unknown_job_is_empty(self, backend: Backend) -> None:
        assert (await backend.peek(token(), "stdout", 0, 100)).data == b""

    async def test_unknown_stream_is_an_error(self, backend: Backend) -> None:
        with pytest.raises(ValueError, match="stdout"):
            await backend.peek(token(), "../job.json", 0, 100)

    # ------------------------------------------------------------------------------------- accounting and the rest

    async def test_usage_is_accounted(self, backend: Backend) -> None:
        item = shell("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; sleep 0.1; echo 5 > $KHOMAS_EVENTS")
        [native_id] = await self.submitted(backend, [item])
        await self.ended(backend, native_id)
        usage = (await backend.usage([native_id, token()]))[native_id]
        assert 0.1 < usage.wall_s < 20
        assert 0.01 < usage.cpu_user_s < 10
        assert (usage.max_memory_bytes > 0, usage.events) == (True, 5)

    async def test_usage_of_unknown_jobs_is_left_out(self, backend: Backend) -> None:
        assert await backend.usage([token()]) == {}

    async def test_resources_are_told_without_sentinels(self, backend: Backend) -> None:
        resources = await backend.list_resources()
        assert resources
        for one in resources:
            assert one.cpu_milli is None or one.cpu_milli > 0
            assert one.free_cpu_milli is None or 0 <= one.free_cpu_milli <= (one.cpu_milli or one.free_cpu_milli)

    async def test_rendered_script_runs_by_hand(self, backend: Backend, tmp_path: Path) -> None:
        item = job("echo", "it's ü")
        [script] = backend.render([item])
        assert (script.token, await backend.find([item.token])) == (item.token, {})
        path = tmp_path / script.name
        path.write_text(script.content)
        assert script.content.startswith("#!")
        run = await asyncio.to_thread(subprocess.run, ["sh", str(path), str(tmp_path / "by hand")], check=True)
        assert run.returncode == 0
        assert (tmp_path / "by hand" / "stdout").read_text() == "it's ü\n"

    async def test_rendered_script_has_no_secrets(self, backend: Backend) -> None:
        sources = [{"url": "https://se/a", "headers": {"Authorization": "Bearer secret"}}]
        upload = {"url_prefix": "https://se/up/", "headers": {"Authorization": "Bearer secret"}}
        [script] = backend.render([job("true", inputs=[{"path": "a", "sources": sources}], upload=upload)])
        assert "secret" not in script.content

    async def test_ended_job_can_be_purged(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("true")])
        await self.ended(backend, ids[0])
        assert [outcome.done for outcome in await backend.purge([ids[0], token()])] == [True, True]
        assert (await self.look(backend, ids[0])).seen == Seen.ABSENT

    async def test_running_job_cannot_be_purged(self, backend: Backend) -> None:
        ids = await self.submitted(backend, [job("sleep", "60")])
        assert [outcome.done for outcome in await backend.purge(ids)] == [False]
        assert (await self.look(backend, ids[0])).seen == Seen.PRESENT
        await backend.cancel(ids, GRACE)
        await self.ended(backend, ids[0])

    async def test_hold_works_or_is_declared_missing(self, backend: Backend) -> None:
        ids = [token()]
        if backend.capabilities.hold:
            assert [outcome.done for outcome in await backend.hold(ids, True)] == [True]
        else:
            with pytest.raises(NotSupportedError):
                await backend.hold(ids, True)
