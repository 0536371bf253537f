"""What the service does by policy, through `khomas up` and the command."""

import json
import time
from pathlib import Path
from typing import Any

from tests.e2e.installation import Installation


def job_file(folder: Path, **document: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(json.dumps(document))
    return path


def shown(khomas: Installation, job: str) -> dict[str, Any]:
    (found,) = khomas.rows("show", job)
    return found


def test_rule_on_the_log_decides_whether_a_job_is_tried_again(khomas: Installation, tmp_path: Path) -> None:
    script = "if test {attempt} = 1; then echo 'connection reset by peer' >&2; else echo 'license expired'; fi; exit 9"
    rules = [{"log": "reset by peer", "action": "retry"}, {"log": "license", "action": "fail"}]
    path = job_file(tmp_path, run=["sh", "-c", script], retry={"backoff": "100ms", "max_attempts": 5, "rules": rules})
    job = khomas.submit(path, code=1)
    assert [(one["number"], one["exit_code"]) for one in shown(khomas, job)["attempts"]] == [(1, 9), (2, 9)]


def test_job_gets_its_grace_to_tidy_up_before_its_wall_time_ends_it(khomas: Installation, tmp_path: Path) -> None:
    tidy = "trap 'echo tidy; exit 3' TERM; sleep 60 & wait"
    job = khomas.submit(job_file(tmp_path, run=["sh", "-c", tidy], wall="1s"), code=1)
    assert shown(khomas, job)["status"]["reason"] == "REASON_LIMIT_WALL"
    assert khomas.run("logs", job) == "tidy\n"


def test_job_that_ignores_the_grace_signal_is_killed(khomas: Installation, tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 60 & wait; sleep 60"
    path = job_file(tmp_path, run=["sh", "-c", stubborn], wall="1s", kill_grace="500ms")
    started = time.monotonic()
    job = khomas.submit(path, code=1)
    assert time.monotonic() - started < 30
    (attempt,) = shown(khomas, job)["attempts"]
    assert (attempt["reason"], attempt["signal"]) == ("REASON_LIMIT_WALL", 9)


def test_slow_job_is_listed_and_ends_when_nobody_answers(khomas: Installation, tmp_path: Path) -> None:
    slow = {"efficiency": 0.5, "window": "1s", "action": "kill", "answer": "8s"}
    (job,) = khomas.rows("submit", job_file(tmp_path, run=["sleep", "60"], slow=slow))
    end = time.monotonic() + 40
    while not (found := khomas.rows("slow", "--jobs")):
        assert time.monotonic() < end
        time.sleep(0.3)
    assert [(one["id"], one["cause"]) for one in found] == [(job["id"], "LOW_EFFICIENCY")]
    (group,) = khomas.rows("slow")
    assert (group["cause"], group["site"], group["jobs"]) == ("LOW_EFFICIENCY", "local", 1)
    assert "LOW_EFFICIENCY" in khomas.run("slow")
    khomas.run("wait", job["id"], "--timeout", "50s", code=1)
    assert shown(khomas, job["id"])["status"]["reason"] == "REASON_LIMIT_SLOW"
    assert "nobody answered" in khomas.run("why", job["id"])


def test_workflow_goes_on_from_what_failed(khomas: Installation, tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    script = f"if test {{index}} = 1 -a ! -e {flag}; then exit 1; fi; echo {{index}} > n.txt"
    path = job_file(
        tmp_path,
        run=["sh", "-c", script],
        split={"count": 3},
        outputs=[{"glob": "n.txt"}],
        merge=[{"text": {"path": "all.txt"}}],
    )
    (made,) = khomas.rows("submit", path)
    khomas.run("wait", made["id"], "--timeout", "45s", code=1)
    flag.touch()
    (answer,) = khomas.rows("retry", "--workflow", made["id"])
    assert answer["retried"] == 2
    khomas.run("wait", *answer["jobs"], "--timeout", "45s")
    khomas.run("get", answer["jobs"][1], "--to", tmp_path / "results")
    assert next((tmp_path / "results").rglob("all.txt")).read_text() == "0\n1\n2\n"
