"""Limits and endings of jobs under the wrapper, with real processes."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from khomas.scheduler.wrapper import JOB_WRAPPER

MIB = 1 << 20
RunJob = Callable[..., dict[str, Any]]


def prepare(folder: Path, manifest: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps({"token": "t1", "job": "jobs/1", "attempt": 2, **manifest}))


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(JOB_WRAPPER), "run", str(folder)])


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    def run(*command: str, **manifest: Any) -> dict[str, Any]:
        prepare(tmp_path / "job", {"command": list(command), **manifest})
        start(tmp_path / "job").wait(30)
        record: dict[str, Any] = json.loads((tmp_path / "job" / "exit.json").read_text())
        return record

    return run


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def ending(record: dict[str, Any]) -> tuple[str, str]:
    return record["state"], record["reason_name"]


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_job_that_succeeds_leaves_a_full_record(run_job: RunJob, tmp_path: Path) -> None:
    record = run_job("sh", "-c", "echo out; echo err >&2; echo 42 > $KHOMAS_EVENTS; echo half > $KHOMAS_PROGRESS")
    assert ending(record) == ("SUCCEEDED", "NONE")
    assert (record["token"], record["attempt"], record["exit_code"], record["signal"]) == ("t1", 2, 0, None)
    assert (record["usage"]["events"], record["application_status"]) == (42, "half")
    assert (tmp_path / "job" / "stdout").read_text() == "out\n"
    assert (tmp_path / "job" / "stderr").read_text() == "err\n"


def test_exit_code_is_told(run_job: RunJob) -> None:
    record = run_job("sh", "-c", "exit 7")
    assert (ending(record), record["exit_code"]) == (("FAILED", "APP_EXIT_CODE"), 7)
    assert record["reason"] == 200


def test_declared_exit_code_is_success(run_job: RunJob) -> None:
    assert ending(run_job("sh", "-c", "exit 7", success_exit_codes=[0, 7])) == ("SUCCEEDED", "NONE")


def test_signal_is_told(run_job: RunJob) -> None:
    record = run_job("sh", "-c", "kill -SEGV $$")
    assert (ending(record), record["signal"]) == (("FAILED", "APP_SIGNAL"), signal.SIGSEGV)


def test_missing_program_is_told_apart_from_a_failing_one(run_job: RunJob) -> None:
    record = run_job("no-such-program")
    assert ending(record) == ("FAILED", "APP_NOT_FOUND")
    assert "no-such-program was not found" in record["message"]


def test_environment_is_clean_and_says_what_the_job_is(run_job: RunJob, tmp_path: Path) -> None:
    os.environ["KHOMAS_TEST_LEAK"] = "1"
    try:
        run_job("env", env={"A": "b c"}, origin="att-1", traceparent="00-1-2-01", resources={"cpu_milli": 2500})
    finally:
        del os.environ["KHOMAS_TEST_LEAK"]
    lines = (tmp_path / "job" / "stdout").read_text().splitlines()
    expected = {"A=b c", "KHOMAS_JOB=jobs/1", "KHOMAS_ATTEMPT=2", "KHOMAS_ORIGIN=att-1", "TRACEPARENT=00-1-2-01"}
    assert expected | {"KHOMAS_CPUS=3", "OMP_NUM_THREADS=3"} <= set(lines)
    assert not [line for line in lines if "LEAK" in line]


def test_environment_is_inherited_on_wish(run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KHOMAS_TEST_LEAK", "1")
    run_job("env", inherit_env=True)
    assert "KHOMAS_TEST_LEAK=1" in (tmp_path / "job" / "stdout").read_text()


def test_environment_left_by_the_pre_command_is_the_payloads(run_job: RunJob, tmp_path: Path) -> None:
    run_job("sh", "-c", 'echo "$RELEASE"', pre_command='export RELEASE="a\nb"')
    assert (tmp_path / "job" / "stdout").read_text() == "a\nb\n"


def test_failing_pre_command_is_the_environments_fault(run_job: RunJob) -> None:
    record = run_job("true", pre_command="exit 3")
    assert ending(record) == ("FAILED", "INFRA_ENVIRONMENT")
    assert "exit code 3" in record["message"]


def test_post_command_knows_the_exit_code_and_runs_after_a_failure(run_job: RunJob, tmp_path: Path) -> None:
    record = run_job("sh", "-c", "exit 7", post_command="echo code $EXIT_CODE")
    assert ending(record) == ("FAILED", "APP_EXIT_CODE")
    assert (tmp_path / "job" / "stdout").read_text() == "code 7\n"


def test_failing_post_command_fails_the_job(run_job: RunJob) -> None:
    assert ending(run_job("true", post_command="false")) == ("FAILED", "APP_CHECK_FAILED")


def test_wall_time_ends_a_job(run_job: RunJob) -> None:
    started = time.monotonic()
    record = run_job("sleep", "60", resources={"wall_time_s": 0.3})
    assert (ending(record), record["signal"]) == (("FAILED", "LIMIT_WALL"), signal.SIGTERM)
    assert time.monotonic() - started < 5


def test_job_that_ignores_sigterm_is_killed_after_the_grace(run_job: RunJob) -> None:
    record = run_job(
        "sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60", resources={"wall_time_s": 0.3}, kill_grace_s=0.3
    )
    assert (ending(record), record["signal"]) == (("FAILED", "LIMIT_WALL"), signal.SIGKILL)
    assert record["usage"]["wall_s"] < 5


def test_job_may_tidy_up_within_the_grace(run_job: RunJob, tmp_path: Path) -> None:
    code = "trap 'echo tidy; exit 9' TERM; sleep 60 & wait"
    record = run_job("sh", "-c", code, resources={"wall_time_s": 0.3})
    assert (ending(record), record["exit_code"]) == (("FAILED", "LIMIT_WALL"), 9)
    assert (tmp_path / "job" / "stdout").read_text() == "tidy\n"


def test_cpu_time_of_all_processes_counts(run_job: RunJob) -> None:
    code = "for i in 1 2; do (while :; do :; done) & done; wait"
    record = run_job("sh", "-c", code, resources={"cpu_time_s": 0.5}, kill_grace_s=0.2)
    assert ending(record) == ("FAILED", "LIMIT_CPU")
    assert record["usage"]["cpu_user_s"] >= 0.4


def test_memory_over_the_limit_ends_a_job(run_job: RunJob) -> None:
    code = f"x = bytearray({200 * MIB})\nimport time\ntime.sleep(60)"
    record = run_job(*python(code), resources={"memory_bytes": 100 * MIB})
    assert ending(record) == ("FAILED", "LIMIT_MEMORY")
    assert record["usage"]["max_memory_bytes"] > 100 * MIB


def test_memory_of_all_processes_counts(run_job: RunJob) -> None:
    code = f"import os, time\nos.fork()\nos.fork()\nx = bytearray({60 * MIB})\ntime.sleep(60)"
    assert ending(run_job(*python(code), resources={"memory_bytes": 150 * MIB})) == ("FAILED", "LIMIT_MEMORY")


def test_memory_shared_by_processes_counts_once(run_job: RunJob) -> None:
    code = f"import os, time\nx = bytearray({80 * MIB})\nos.fork()\nos.fork()\nsum(x[::4096])\ntime.sleep(0.5)"
    assert ending(run_job(*python(code), resources={"memory_bytes": 160 * MIB})) == ("SUCCEEDED", "NONE")


def test_job_too_fast_for_samples_is_still_found_out(run_job: RunJob) -> None:
    code = f"x = bytearray({300 * MIB})"
    assert ending(run_job(*python(code), resources={"memory_bytes": 100 * MIB})) == ("FAILED", "LIMIT_MEMORY")


def test_one_huge_allocation_is_refused_and_named(run_job: RunJob) -> None:
    record = run_job(*python(f"bytearray({31 * 1024 * MIB})"), resources={"memory_bytes": 500 * MIB})
    assert (ending(record), record["exit_code"]) == (("FAILED", "LIMIT_MEMORY"), 1)
    assert "was refused memory" in record["message"]


def test_disk_over_the_limit_ends_a_job(run_job: RunJob, tmp_path: Path) -> None:
    code = "while :; do head -c 4000000 /dev/zero >> big; sleep 0.01; done"
    record = run_job("sh", "-c", code, resources={"disk_bytes": 20 * MIB})
    assert ending(record) == ("FAILED", "LIMIT_DISK")
    assert record["usage"]["max_disk_bytes"] > 20 * MIB
    assert not list((tmp_path / "job" / "work").iterdir())


def test_disk_used_by_a_job_that_has_just_ended_counts(run_job: RunJob) -> None:
    code = "head -c 30000000 /dev/zero > big"
    assert ending(run_job("sh", "-c", code, resources={"disk_bytes": 20 * MIB})) == ("FAILED", "LIMIT_DISK")


def test_log_over_the_limit_ends_a_job_and_is_cut(run_job: RunJob, tmp_path: Path) -> None:
    record = run_job("yes", log_bytes=100_000)
    assert ending(record) == ("FAILED", "LIMIT_LOG_SIZE")
    text = (tmp_path / "job" / "stdout").read_bytes()
    assert len(text) < 100_100
    assert b"[khomas: cut after 100000 of" in text


def test_processes_left_behind_are_killed(run_job: RunJob, tmp_path: Path) -> None:
    code = "setsid sh -c 'sleep 61 & echo $!; exec sleep 61' & echo $!; sleep 0.2"
    record = run_job("sh", "-c", code)
    pids = [int(line) for line in (tmp_path / "job" / "stdout").read_text().split()]
    assert (ending(record), record["stragglers"]) == (("SUCCEEDED", "NONE"), 2)
    assert not [pid for pid in pids if lives(pid)]


def test_second_run_of_the_same_folder_is_refused(run_job: RunJob, tmp_path: Path) -> None:
    first = run_job("true")
    again = start(tmp_path / "job")
    assert again.wait(10) == 3
    assert json.loads((tmp_path / "job" / "exit.json").read_text()) == first


def test_sigterm_to_the_wrapper_cancels_the_job(tmp_path: Path) -> None:
    prepare(tmp_path, {"command": ["sh", "-c", "echo on; exec sleep 60"]})
    wrapper = start(tmp_path)
    wait_until(lambda: (tmp_path / "stdout").exists() and (tmp_path / "stdout").read_text() == "on\n")
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(10) == 1
    record = json.loads((tmp_path / "exit.json").read_text())
    assert (ending(record), record["reason"]) == (("CANCELLED", "USER_CANCELLED"), 600)


@pytest.mark.parametrize("source", sorted(JOB_WRAPPER.parent.glob("khomas_*.py")))
def test_source_is_read_by_the_oldest_supported_python(source: Path) -> None:
    ast.parse(source.read_text(), feature_version=(3, 6))


def test_broken_manifest_still_leaves_a_record(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    start(tmp_path).wait(10)
    assert ending(json.loads((tmp_path / "exit.json").read_text())) == ("FAILED", "INFRA_ENVIRONMENT")


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
