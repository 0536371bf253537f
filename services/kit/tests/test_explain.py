"""`khomas auth explain`."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
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


@pytest.fixture
def no_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the state folder of this user would be."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    monkeypatch.delenv("BEARER_TOKEN_FILE", raising=False)
    return tmp_path / "data/khomas"


def installed(state: Path) -> str:
    """Make the state folder of a `khomas up` with the token in it, and return the token."""
    state.mkdir(parents=True)
    token = DevelopmentIssuer.open(state, "hess").token("alice")
    (state / "vo").write_text("hess")
    (state / "token").write_text(token)
    return token


def test_token_in_use_is_judged_by_the_installation_beside_it(
    no_installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(tmp_path / "state")
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "state/token"))
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out)["subject"] == "alice"


def test_token_in_use_is_judged_by_the_installation_of_this_user(
    no_installation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", installed(no_installation))
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out)["subject"] == "alice"


def test_token_of_others_gets_no_verdict(
    no_installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(no_installation)
    monkeypatch.setenv("BEARER_TOKEN", DevelopmentIssuer.open(tmp_path, "hess").token("alice"))
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Cannot judge" in printed.err
    assert "--issuer" in printed.err


def test_unreadable_token_needs_no_judge(
    no_installation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", "no token")
    assert main([]) == 1
    assert json.loads(capsys.readouterr().out)["rule"] == "shape"


def test_issuer_that_cannot_be_asked_gives_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    signer = replace(DevelopmentIssuer.open(tmp_path, "hess"), url=url)
    monkeypatch.setenv("BEARER_TOKEN", signer.token("alice"))
    assert main(["--issuer", url, "--audience", signer.audience]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"Cannot judge: no keys of {url}" in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--issuer", "https://issuer.example"],
        ["--audience", "grpcs://khomas.example"],
        ["--state", "/state", "--issuer", "https://issuer.example", "--audience", "grpcs://khomas.example"],
    ],
)
def test_judge_is_named_completely_and_once(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_command_says_where_it_looked_for_a_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "khomas.kit.auth", "explain"]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "BEARER_TOKEN_FILE": str(tmp_path / "none")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "BEARER_TOKEN_FILE" in done.stderr
