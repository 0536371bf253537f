"""Credentials in files: what is read, what is refused, and that secrets stay where they are."""

import json
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import jwt
import pytest

from khomas.kit.config import ConfigError
from khomas.kit.credentials import (
    Credentials,
    CredentialSettings,
    Keeper,
    KeeperSettings,
    Notice,
    RenewalFailed,
    open_all,
)
from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.kit.telemetry.logs import JsonFormatter


def _jwt(**claims: Any) -> str:
    return jwt.encode(claims, "a key that nobody checks here, of 32 bytes", "HS256")


def _secret(path: Path, content: str, mode: int = 0o600) -> Path:
    path.touch()
    path.chmod(mode)
    path.write_text(content)
    return path


def test_token_is_read_without_being_verified(tmp_path: Path) -> None:
    now = int(time.time())
    text = _jwt(sub="robot", iat=now, exp=now + 3600, scope="compute.read storage.read:/")
    token = BearerToken("grid", BearerOptions(file=_secret(tmp_path / "token", text + "\n")))
    known = token.status()
    assert (known.present, known.subject, known.can) == (True, "robot", ("compute.read", "storage.read:/"))
    assert known.expires == datetime.fromtimestamp(now + 3600, UTC)
    assert token.files() == {"token": tmp_path / "token"}
    assert token.environment() == {"BEARER_TOKEN_FILE": str(tmp_path / "token")}


def test_opaque_token_lasts_from_when_it_was_written(tmp_path: Path) -> None:
    path = _secret(tmp_path / "token", "opaque")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    options = BearerOptions(file=path, opaque_lifetime=timedelta(hours=2))
    known = BearerToken("grid", options).status()
    assert known.expires == datetime.fromtimestamp(1_700_007_200, UTC)


def test_token_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    path = _secret(tmp_path / "token", _jwt(sub="one", exp=2_000_000_000))
    token = BearerToken("grid", BearerOptions(file=path))
    assert token.status().subject == "one"
    _secret(tmp_path / "new", _jwt(sub="two", exp=2_000_000_000)).replace(path)
    assert token.status().subject == "two"
    path.unlink()
    assert token.status().trouble == f"{path} cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"BEARER_TOKEN_FILE": "named", "XDG_RUNTIME_DIR": "."}, "named"),
        ({"XDG_RUNTIME_DIR": "."}, f"bt_u{os.geteuid()}"),
    ],
)
def test_token_is_discovered_as_wlcg_says(tmp_path: Path, variables: dict[str, str], found: str) -> None:
    for name in ("named", f"bt_u{os.geteuid()}"):
        _secret(tmp_path / name, _jwt(sub=name, exp=2_000_000_000))
    environment = {name: str(tmp_path / value) for name, value in variables.items()}
    assert BearerToken("grid", BearerOptions(), environment).status().subject == found


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_secret_that_others_can_read_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = _secret(tmp_path / "a token", _jwt(sub="robot", exp=2_000_000_000), mode)
    token = BearerToken("grid", BearerOptions(file=path))
    known = token.status()
    assert not known.present
    assert known.trouble == f"{path} can be used by others (mode {mode:o})"
    subprocess.run(["/bin/sh", "-c", known.remedy], check=True)
    assert token.status().present


def test_group_may_read_where_that_is_allowed(tmp_path: Path) -> None:
    path = _secret(tmp_path / "token", _jwt(sub="robot", exp=2_000_000_000), 0o440)
    assert BearerToken("grid", BearerOptions(file=path, group_readable=True)).status().present
    path.chmod(0o444)
    assert not BearerToken("grid", BearerOptions(file=path, group_readable=True)).status().present


@pytest.mark.parametrize("content", ["", "two words", "a.b c.d"])
def test_file_without_token_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    known = BearerToken("grid", BearerOptions(file=_secret(tmp_path / "token", content))).status()
    assert known.trouble == f"{tmp_path / 'token'}: it holds no token"


def test_folder_is_no_token(tmp_path: Path) -> None:
    assert BearerToken("grid", BearerOptions(file=tmp_path)).status().trouble.endswith("is not a file")


@pytest.mark.parametrize("exp", [None, "tomorrow", True, 1e300, -1])
def test_token_without_a_time_is_refused(tmp_path: Path, exp: object) -> None:
    import base64

    body = base64.urlsafe_b64encode(json.dumps({"exp": exp}).encode()).decode()
    path = _secret(tmp_path / "token", f"e30.{body}.c2ln")
    assert BearerToken("grid", BearerOptions(file=path)).status().trouble.endswith("does not say when it expires")


async def test_command_renews_a_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    command = ("/bin/sh", "-c", f"umask 077; echo opaque > {path}")
    token = BearerToken("grid", BearerOptions(file=path, renew_command=command))
    assert token.renewable
    await token.renew()
    assert token.status().present


async def test_failed_command_is_said_without_tokens(tmp_path: Path) -> None:
    text = _jwt(sub="robot", exp=2_000_000_000)
    command = ("/bin/sh", "-c", f"echo 'refused {text}' >&2; exit 3")
    with pytest.raises(RenewalFailed) as raised:
        await BearerToken("grid", BearerOptions(file=tmp_path / "token", renew_command=command)).renew()
    assert "exit code 3: refused [redacted]" in str(raised.value)


def test_kinds_are_found_by_entry_point() -> None:
    kinds = {kind: CredentialSettings(kind=kind) for kind in ("bearer", "x509", "kerberos")}
    assert [one.kind for one in open_all(kinds).values()] == ["bearer", "x509", "kerberos"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "beaver"}, r"credentials\.grid\.kind: there is no kind beaver, did you mean bearer\?"),
        ({"kind": "bearer", "options": {"flie": "x"}}, r"credentials\.grid\.options: flie: Extra inputs"),
        ({"kind": "ssh"}, r"credentials\.grid\.options: : Value error, give either key or agent"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_all({"grid": CredentialSettings(**settings)})


def test_secret_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as raised:
        open_all({"grid": CredentialSettings(kind="x509", options={"myproxy": "my-secret-passphrase"})})
    assert "my-secret-passphrase" not in str(raised.value)
    assert raised.value.__cause__ is None


async def test_secrets_are_in_no_log_argument_or_repr(tmp_path: Path) -> None:
    text = _jwt(sub="robot", iat=time.time() - 60, exp=time.time() + 30)
    secret = text.rpartition(".")[2]
    path = _secret(tmp_path / "token", text)
    command = ("/bin/sh", "-c", f"cat {path} >&2; exit 1")
    settings = {"grid": CredentialSettings(kind="bearer", options={"file": path, "renew_command": command})}
    providers = open_all(settings)
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    notices: list[Notice] = []

    async def announce(some: Sequence[Notice]) -> None:
        notices.extend(some)

    try:
        await Keeper(Credentials(providers), KeeperSettings(), announce).step()
    finally:
        logging.getLogger().removeHandler(handler)
    everything = written.getvalue() + repr(notices) + repr(providers) + repr(vars(providers["grid"]))
    assert "renewal_failed" in everything
    assert secret not in everything
