"""What commands that change something answer to programs, and how they wait for the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.installation import Installation

Say = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def say(khomas: Installation) -> Say:
    """Run a command where the environment wants JSON, without a word about it."""
    installation = Installation(khomas.state, environment={**khomas.environment, "KHOMAS_OUTPUT": "json"})

    def run(*arguments: object, code: int = 0) -> list[dict[str, Any]]:
        said = installation.run(*arguments, code=code)
        return [json.loads(line) for line in said.splitlines() if line.startswith("{") or not code]

    return run


def test_changes_of_files_answer_in_json(say: Say, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (put,) = say("put", tmp_path / "a", "/hess/answers/a")
    assert (put["name"], put["size"], put["adler32"]) == ("/hess/answers/a", 3, "024d0127")
    (copied,) = say("cp", tmp_path / "a", "lfn:/hess/answers/b")
    assert (copied["name"], copied["storage_element"]) == ("/hess/answers/b", "local")
    (got,) = say("get", put["name"], "--to", tmp_path / "back")
    assert got == {"name": put["name"], "path": str(tmp_path / "back/a")}
    (gone,) = say("rm", copied["name"], "--reason", "test")
    assert (gone["uid"], bool(gone["undo_until"])) == (copied["uid"], True)
    assert say("undelete", copied["name"]) == [{"name": copied["name"], "uid": copied["uid"]}]


def test_changes_of_datasets_and_metadata_answer_in_json(say: Say, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    say("put", tmp_path / "a", "/hess/answers/c")
    (key,) = say("meta", "declare", "answered=integer")
    assert (key["key"], key["type"]) == ("answered", "integer")
    assert say("meta", "set", "/hess/answers/c", "answered=1") == [{"changed": 1}]
    (made,) = say("dataset", "create", "answers/c")
    assert made["name"] == "datasets/answers/c"
    assert say("dataset", "add", "answers/c", "/hess/answers/c")[0]["file_count"] == 1
    assert "file_count" not in say("dataset", "remove", "answers/c", "/hess/answers/c")[0]
    assert say("dataset", "close", "answers/c")[0]["state"] == "STATE_CLOSED"
    (run,) = say("run", "create", "4711", "--target", "Crab")
    assert (run["id"], run["target"]) == ("4711", "Crab")
    assert say("run", "flag", "4711", "bad", "--comment", "clouds")[0]["quality"] == "BAD"


def test_changes_of_jobs_answer_in_json_and_are_waited_for(say: Say) -> None:
    made, ended = say("submit", "--wait", "--", "false", code=1)
    assert (ended["id"], ended["state"], ended["reason"]) == (made["id"], "FAILED", "APP_EXIT_CODE")
    assert say("wait", made["id"], code=1)[0]["state"] == "FAILED"
    again, new = say("retry", made["id"], "--wait", "--timeout", "45s", code=1)
    assert (again["retried"], again["jobs"], new["state"]) == (1, [new["id"]], "FAILED")
    assert {row["field"] for row in say("diff", made["id"], new["id"], code=1)} >= {"create_time"}
    (meaning,) = say("explain", "app_exit_code")
    assert meaning["reason"] == "APP_EXIT_CODE"


def test_cancel_waits_until_jobs_have_ended(say: Say) -> None:
    (made,) = say("submit", "--count", 3, "--max-running", 1, "--", "sleep", "60")
    counts, ended = say("cancel", made["id"], "--yes", "--wait", "--timeout", "45s")
    assert counts["cancelled"] + counts["cancelling"] == 3
    assert (ended["state"], ended["counts"]) == ("CANCELLED", {"CANCELLED": 3})


def test_cancelled_production_is_waited_for_until_its_jobs_have_ended(say: Say, tmp_path: Path) -> None:
    document = {
        "name": "cancelled",
        "stages": [
            {
                "name": "simulate",
                "grid": {"zenith": [0]},
                "requested_events": "100",
                "events_per_job": "100",
                "job": {"run": ["sleep", "60"], "wall": "2min"},
            }
        ],
    }
    (tmp_path / "cancelled.yaml").write_text(json.dumps(document))
    say("prod", "create", tmp_path / "cancelled.yaml", "--wait", "--timeout", "3s", code=124)
    (production,) = say("prod", "cancel", "cancelled", "--wait", "--timeout", "60s")
    assert (production["id"], production["state"]) == ("cancelled", "CANCELLED")
    jobs = say("ls", "--tag", "production=cancelled", "--limit", 0)
    assert {job["state"] for job in jobs} == {"CANCELLED"}
    assert say("prod", "wait", "cancelled", code=3)[0]["state"] == "CANCELLED"


def test_drain_of_a_backend_waits_for_its_jobs(say: Say) -> None:
    (job,) = say("submit", "--on", "local", "--", "sleep", "60")
    try:
        (drained,) = say("backends", "drain", "local", "--reason", "test", "--wait", "--timeout", "1s", code=124)
        assert (drained["id"], drained["status"]) == ("local", "DRAINING")
        say("cancel", job["id"], "--yes", "--wait", "--timeout", "45s")
        say("backends", "drain", "local", "--reason", "test", "--wait", "--timeout", "45s")
    finally:
        (opened,) = say("backends", "unban", "local")
    assert opened["status"] == "PRODUCTION"
