"""The spool keeper by itself: what a submission writes, and which jobs may begin afterwards."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from khomas.scheduler.wrapper import JOB_WRAPPER, STARTER
from khomas.scheduler.wrapper.khomas_spool import Spool


def _takes_everything(argv: list[str], env: dict[str, str], seconds: float) -> dict[str, Any]:
    """A batch system."""
    return {"argv": argv, "exit_code": 0, "stdout": "42\n", "stderr": "", "time": 0.0}


def _submit(spool: Path, batch: str, tokens: Sequence[str], take_over: Sequence[str] = ()) -> dict[str, Any]:
    jobs = [{"token": token, "manifest": {"token": token, "command": ["echo", f"I am {token} ü"]}} for token in tokens]
    order = {"batch": batch, "jobs": jobs, "take_over": list(take_over), "script": "#!/bin/sh\n", "native": r"(\d+)"}
    order |= {"single": ["submit"], "array": ["submit", "@LAST@"]}
    answer = Spool(str(spool), _takes_everything).submit({"batches": [order], "seconds": 5.0})
    [told] = answer["batches"]
    return dict(told)


def _begin(spool: Path, batch: str, index: int) -> int:
    """What a node does; exit code 3 = there is nothing to run."""
    argv = [sys.executable, "-E", "-s", str(STARTER), JOB_WRAPPER.stem, "element", str(spool), batch, str(index)]
    return subprocess.run(argv, check=False, stderr=subprocess.DEVNULL, timeout=30).returncode


def test_submission_of_a_thousand_writes_as_many_files_as_one_of_two(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    _submit(few, "khomas-1", ["a0", "a1"])
    answer = _submit(many, "khomas-1", [f"a{number}" for number in range(1000)])
    assert answer["natives"]["a0"]["native"] == "42"
    inodes = [len({path.stat().st_ino for path in spool.rglob("*") if path.is_file()}) for spool in (few, many)]
    assert inodes[0] == inodes[1]


def test_every_element_finds_its_own_manifest(tmp_path: Path) -> None:
    tokens = [f"token-{number}" for number in range(12)]
    _submit(tmp_path, "khomas-1", tokens)
    for index in (0, 1, 10, 11):
        assert _begin(tmp_path, "khomas-1", index) == 0
        assert (tmp_path / "jobs" / tokens[index] / "stdout").read_text() == f"I am {tokens[index]} ü\n"
    assert sorted(path.name for path in (tmp_path / "ended").iterdir()) == sorted(
        tokens[index] for index in (0, 1, 10, 11)
    )


def test_element_that_comes_twice_runs_once(tmp_path: Path) -> None:
    _submit(tmp_path, "khomas-1", ["a", "b"])
    assert [_begin(tmp_path, "khomas-1", 1) for _ in range(2)] == [0, 3]


def test_known_job_of_another_submission_stays_where_it_is_and_the_others_go(tmp_path: Path) -> None:
    _submit(tmp_path, "khomas-1", ["a", "b"])
    answer = _submit(tmp_path, "khomas-2", ["b", "c", "d"])
    assert answer["fresh"] == ["c", "d"]
    assert (answer["known"]["b"]["batch"], answer["known"]["b"]["index"]) == ("khomas-1", 1)
    assert _begin(tmp_path, "khomas-2", 0) == 0
    assert (tmp_path / "jobs/c/exit.json").exists()


def test_job_that_another_submission_took_over_begins_with_that_alone(tmp_path: Path) -> None:
    _submit(tmp_path, "khomas-1", ["a", "b"])
    answer = _submit(tmp_path, "khomas-2", ["b"], take_over=["b"])
    assert answer["fresh"] == ["b"]
    assert [_begin(tmp_path, "khomas-1", 1), _begin(tmp_path, "khomas-2", 0)] == [3, 0]


def test_job_that_has_begun_is_not_taken_over(tmp_path: Path) -> None:
    _submit(tmp_path, "khomas-1", ["a", "b"])
    _begin(tmp_path, "khomas-1", 1)
    answer = _submit(tmp_path, "khomas-2", ["b"], take_over=["b"])
    assert (answer["fresh"], answer["known"]["b"]["begun"]) == ([], True)
    assert not (tmp_path / "batches/khomas-2").exists()


@pytest.mark.parametrize("order", ["cancel", "purge"])
def test_waiting_job_that_was_cancelled_or_purged_never_begins(tmp_path: Path, order: str) -> None:
    _submit(tmp_path, "khomas-1", ["a", "b"])
    spool = Spool(str(tmp_path))
    if order == "cancel":
        assert spool.cancel({"tokens": ["b"], "grace_s": 1.0}) == {"waiting": ["b"], "running": []}
        assert json.loads((tmp_path / "jobs/b/exit.json").read_text())["state"] == "CANCELLED"
    else:
        assert spool.purge({"tokens": ["a", "b"], "gone": ["b"]}) == {"refused": ["a"]}
    assert _begin(tmp_path, "khomas-1", 1) == 3
    assert not (tmp_path / "jobs/b/stdout").exists()
    assert _begin(tmp_path, "khomas-1", 0) == 0


def test_submission_is_forgotten_with_the_last_of_its_jobs(tmp_path: Path) -> None:
    _submit(tmp_path, "khomas-1", ["a", "b"])
    spool = Spool(str(tmp_path))
    for token in ("a", "b"):
        assert (tmp_path / "batches/khomas-1/manifests").exists()
        spool.purge({"tokens": [token], "gone": [token]})
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_look_reads_what_was_used_of_those_alone_of_which_it_is_wanted(tmp_path: Path) -> None:
    tokens = ["asked", "unasked", "fresh", "ended"]
    for token in tokens:
        folder = tmp_path / "jobs" / token
        folder.mkdir(parents=True)
        (folder / "started").write_text(json.dumps({"time": f"since {token}"}))
        if token != "fresh":
            (folder / "heartbeat").write_text(json.dumps({"cpu_s": 1.5}))
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended/ended").touch()
    (tmp_path / "jobs/ended/exit.json").write_text('{"state": "SUCCEEDED"}')
    spool = Spool(str(tmp_path), _takes_everything)
    look = {"wanted": tokens, "seconds": 5.0}
    told = spool.look(look | {"measure": ["asked", "fresh", "ended"]})
    assert told["used"] == {"asked": {"started": {"time": "since asked"}, "beat": {"cpu_s": 1.5}}, "fresh": None}
    assert spool.look(look)["used"] == {}


def test_file_system_without_hard_links_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    _submit(tmp_path, "khomas-1", ["a", "b"])
    assert _submit(tmp_path, "khomas-2", ["a", "c"])["fresh"] == ["c"]
    assert [_begin(tmp_path, "khomas-1", 0), _begin(tmp_path, "khomas-2", 0)] == [0, 0]
