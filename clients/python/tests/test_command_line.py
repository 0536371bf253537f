"""What the command refuses by itself, and streams that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KHOMAS = Path(sys.executable).parent / "khomas"


def run(words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Let a shell run the command."""
    shell, own = ["/bin/sh", "-c", f"{KHOMAS} {words}"], {**os.environ, **environment}
    return subprocess.run(shell, env=own, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("submit --grid z=1,2 --count 3 -- true", "--grid and --count exclude each other"),
        ("submit --derive a=1 -- true", "--derive computes from the axes of --grid"),
        ("submit --grid events=1..1e3 -- true", "events=1..1e3 is no value and no range"),
        ("submit --cpus nan -- true", "cpus: nan is no number"),
        ("submit --memory 99999999999TB -- true", "more than can be written down"),
        ("ls --since 99999999d", "longer than a hundred years"),
        ("find --as-of 2020-01-01 /hess", "name it with --dataset"),
    ],
)
def test_what_would_do_something_else_than_asked_is_refused(words: str, message: str) -> None:
    refused = run(words)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(("streams", "code"), [(">&-", 0), (">/dev/full", 1), ("<&-", 0), ("<&- >&- 2>&-", 0)])
def test_streams_that_are_closed_or_full_are_no_bugs(streams: str, code: int) -> None:
    ended = run(f"explain {streams}")
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_job_files_are_utf8_whatever_the_locale_is(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("{run: [program], split: {grid: {ü: 1..1e3}}}", encoding="utf-8")
    refused = run(f"submit {tmp_path}/job.yaml", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert refused.returncode == 2
    assert "=1..1e3 is no value" in refused.stderr
