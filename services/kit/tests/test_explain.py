"""`khomas auth explain`."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from khomas.kit.auth.explain import main
from khomas.kit.auth.issuer import DevelopmentIssuer


def judged(state: Path, token: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    (state / "vo").write_text("hess")
    (state / "token").write_text(token)
    code = main(["--state", str(state), "--token-file", str(state / "token")])
    return code, json.loads(capsys.readouterr().out)


def test_accepted_token_shows_what_it_allows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = DevelopmentIssuer.open(tmp_path, "hess").token("pilot:1", ["storage.read:/hess", "compute.read"])
    code, verdict = judged(tmp_path, token, capsys)
    assert code == 0
    assert (verdict["vo"], verdict["kind"]) == ("hess", "pilot")
    assert verdict["capabilities"] == ["storage.read:/hess", "compute.read"]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"expires_in": timedelta(seconds=-1)}, "expired"),
        ({"audience": "https://other.example"}, "audience"),
        ({"capabilities": ["storage.read"]}, "scope"),
    ],
)
def test_refused_token_shows_the_rule_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], rule: str
) -> None:
    token = DevelopmentIssuer.open(tmp_path, "hess").token("alice", **options)
    code, verdict = judged(tmp_path, token, capsys)
    assert (code, verdict["rule"]) == (1, rule)
    assert verdict["remedy"]
    assert verdict["claims"]["subject"] == "alice"


def test_unreadable_token_is_explained_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DevelopmentIssuer.open(tmp_path, "hess")
    code, verdict = judged(tmp_path, "no token", capsys)
    assert (code, verdict["rule"], verdict["claims"]) == (1, "shape", {})


def test_command_says_where_it_looked_for_a_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "khomas.kit.auth", "explain"]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "BEARER_TOKEN_FILE": str(tmp_path / "none")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "BEARER_TOKEN_FILE" in done.stderr
