"""Credentials in files: what is read, what is refused, and that secrets stay where they are."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import jwt
import pytest

from khomas.kit.config import ConfigError
from khomas.kit.credentials import (
    Credential,
    Credentials,
    CredentialSettings,
    Keeper,
    KeeperSettings,
    Notice,
    RenewalFailed,
    Rung,
    What,
    open_all,
    rung,
)
from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.kit.credentials.ssh import SshKey, SshOptions
from khomas.kit.telemetry.logs import JsonFormatter

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
LADDER = KeeperSettings().warn_before


def _jwt(**claims: Any) -> str:
    return jwt.encode(claims, "a key that nobody checks here, of 32 bytes", "HS256")


def _secret(path: Path, content: str, mode: int = 0o600) -> Path:
    path.touch()
    path.chmod(mode)
    path.write_text(content)
    return path


# ------------------------------------------------------------------------------------------------- bearer tokens


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


# -------------------------------------------------------------------------------------------------------- ssh keys


def _key(path: Path, *options: str, passphrase: str = "") -> Path:
    argv = ["ssh-keygen", "-q", "-N", passphrase, "-C", "robot", "-f", str(path), *(options or ("-t", "ed25519"))]
    subprocess.run(argv, check=True, timeout=30)
    return path


def _fingerprint(path: Path) -> str:
    return subprocess.run(
        ["ssh-keygen", "-l", "-f", str(path)], check=True, timeout=30, capture_output=True, text=True
    ).stdout.split()[1]


def _certificate(tmp_path: Path, key: Path, validity: str) -> None:
    authority = _key(tmp_path / "authority")
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "robot@farm", "-n", "prod,test", "-V", validity]
    subprocess.run([*argv, f"{key}.pub"], check=True, timeout=30)


@pytest.mark.parametrize("options", [("-t", "ed25519"), ("-t", "rsa", "-b", "2048"), ("-t", "ecdsa", "-m", "PEM")])
def test_key_is_known_by_its_fingerprint_and_lasts_for_ever(tmp_path: Path, options: Sequence[str]) -> None:
    path = _key(tmp_path / "key", *options)
    key = SshKey("farm", SshOptions(key=path))
    known = key.status()
    assert (known.present, known.subject, known.expires) == (True, _fingerprint(path), None)
    assert key.files() == {"key": path}


def test_certificate_limits_its_key(tmp_path: Path) -> None:
    path = _key(tmp_path / "key")
    _certificate(tmp_path, path, "-1h:+2h")
    key = SshKey("farm", SshOptions(key=path))
    known = key.status()
    assert known.subject == f"robot@farm ({_fingerprint(path)})"
    assert known.can == ("prod", "test")
    assert known.expires is not None
    assert abs(known.expires - datetime.now(UTC) - 2 * HOUR) < timedelta(minutes=2)
    assert key.files() == {"key": path, "certificate": tmp_path / "key-cert.pub"}


def test_certificate_for_ever_does_not_expire(tmp_path: Path) -> None:
    path = _key(tmp_path / "key")
    _certificate(tmp_path, path, "always:forever")
    known = SshKey("farm", SshOptions(key=path)).status()
    assert (known.present, known.not_before, known.expires) == (True, None, None)


def test_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    _certificate(tmp_path, _key(tmp_path / "key"), "+2h")
    other = SshOptions(key=_key(tmp_path / "other"), certificate=tmp_path / "key-cert.pub")
    assert SshKey("farm", other).status().trouble.endswith("it is the certificate of another key")


@pytest.mark.parametrize("options", [("-t", "ed25519"), ("-t", "ecdsa", "-m", "PEM")])
def test_key_with_a_passphrase_is_refused(tmp_path: Path, options: Sequence[str]) -> None:
    path = _key(tmp_path / "key", *options, passphrase="hidden-passphrase")
    known = SshKey("farm", SshOptions(key=path)).status()
    assert known.trouble == f"{path}: it has a passphrase; use an agent, or take it off: ssh-keygen -p"


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = _key(tmp_path / "key")
    path.chmod(0o644)
    known = SshKey("farm", SshOptions(key=path)).status()
    assert (known.present, known.remedy) == (False, f"chmod 600 {path}")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    address = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not address.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _add(agent: Path, key: Path) -> None:
    environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    subprocess.run(["ssh-add", "-q", str(key)], check=True, timeout=30, env=environment)


def test_agent_is_asked_for_its_keys(tmp_path: Path, agent: Path) -> None:
    key = SshKey("farm", SshOptions(agent=agent))
    assert key.status().trouble == f"the agent at {agent} does not hold the key"
    path = _key(tmp_path / "key")
    _add(agent, path)
    assert key.status().subject == _fingerprint(path)
    assert key.environment() == {"SSH_AUTH_SOCK": str(agent)}
    wanted = SshKey("farm", SshOptions(agent=agent, fingerprint="SHA256:another"))
    assert not wanted.status().present


def test_agent_tells_of_certificates(tmp_path: Path, agent: Path) -> None:
    path = _key(tmp_path / "key")
    _certificate(tmp_path, path, "-1h:+2h")
    _add(agent, path)
    known = SshKey("farm", SshOptions(agent=agent, fingerprint=_fingerprint(path))).status()
    assert (known.subject, known.can) == (f"robot@farm ({_fingerprint(path)})", ("prod", "test"))
    assert known.expires is not None


def test_agent_that_is_gone_is_said(tmp_path: Path) -> None:
    known = SshKey("farm", SshOptions(agent=tmp_path / "nothing")).status()
    assert known.trouble.startswith(f"the agent at {tmp_path / 'nothing'} does not answer")


# --------------------------------------------------------------------------------------------- settings and secrets


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


# ------------------------------------------------------------------------------------------------ ladder and keeper


def _lasting(left: timedelta, whole: timedelta | None = None, **values: Any) -> Credential:
    begun = NOW + left - whole if whole is not None else None
    return Credential(present=True, not_before=begun, expires=NOW + left, **values)


@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        (Credential(present=True), None),
        (Credential(present=False), Rung(What.MISSING)),
        (_lasting(timedelta(days=8)), None),
        (_lasting(timedelta(days=7)), Rung(What.EXPIRING, timedelta(days=7))),
        (_lasting(timedelta(hours=23)), Rung(What.EXPIRING, timedelta(days=1))),
        (_lasting(timedelta(minutes=59)), Rung(What.EXPIRING, HOUR)),
        (_lasting(timedelta()), Rung(What.EXPIRED)),
        (_lasting(timedelta(minutes=10), whole=HOUR), None),
        (_lasting(timedelta(minutes=10), whole=12 * HOUR), Rung(What.EXPIRING, HOUR)),
    ],
)
def test_ladder_knows_where_a_credential_stands(credential: Credential, expected: Rung | None) -> None:
    assert rung(credential, LADDER, NOW) == expected


def test_credential_covers_a_job_with_its_margin() -> None:
    margin = timedelta(minutes=5)
    assert _lasting(2 * HOUR).covers(NOW, 2 * HOUR - margin, margin)
    assert not _lasting(2 * HOUR).covers(NOW, 2 * HOUR - margin + timedelta(seconds=1), margin)
    assert _lasting(HOUR, renews=True).covers(NOW, 100 * HOUR, margin)
    assert not _lasting(margin, renews=True).covers(NOW, timedelta(), margin)
    assert not Credential(present=False).covers(NOW, timedelta(), timedelta())
    assert not Credential(present=True, not_before=NOW + HOUR).covers(NOW, timedelta(), timedelta())


class _Fake:
    """A credential that a test sets."""

    name, kind = "grid", "fake"

    def __init__(self, credential: Credential, *, renewable: bool = False, fails: str = "") -> None:
        self.credential = credential
        self.renewable = renewable
        self.fails = fails
        self.renewals = 0

    def status(self) -> Credential:
        return self.credential

    def files(self) -> dict[str, Path]:
        return {}

    def environment(self) -> dict[str, str]:
        return {}

    async def renew(self) -> None:
        self.renewals += 1
        if self.fails:
            raise RenewalFailed(self.fails)
        self.credential = _lasting(24 * HOUR, whole=24 * HOUR)


class _Told:
    """Keeps what was announced, under a clock that a test moves."""

    def __init__(self, fake: _Fake) -> None:
        self.notices: list[Notice] = []
        self.now = NOW
        self.keeper = Keeper(Credentials({"grid": fake}), KeeperSettings(), self._announce, lambda: self.now)

    async def _announce(self, notices: Sequence[Notice]) -> None:
        self.notices += notices

    async def after(self, passed: timedelta) -> list[str]:
        """What is announced when so much time has passed."""
        self.now += passed
        before = len(self.notices)
        await self.keeper.step()
        await self.keeper.step()
        return [str(notice.what) for notice in self.notices[before:]]


async def test_each_step_of_the_ladder_is_announced_once() -> None:
    fake = _Fake(_lasting(timedelta(days=8)))
    told = _Told(fake)
    passed = [timedelta(), *[timedelta(days=step) for step in (1, 3, 3)], 19 * HOUR, 4 * HOUR, HOUR, 5 * HOUR]
    said = [await told.after(step) for step in passed]
    expiring = ["expiring"]
    assert said == [[], expiring, [], expiring, expiring, expiring, ["expired"], []]
    fake.credential = Credential(present=True, expires=told.now + timedelta(days=30))
    assert await told.after(timedelta()) == ["renewed"]
    assert await told.after(timedelta(days=24)) == expiring


async def test_late_start_announces_the_worst_step_alone() -> None:
    told = _Told(_Fake(_lasting(timedelta(minutes=30))))
    assert await told.after(timedelta()) == ["expiring"]
    assert told.notices[0].message == "grid expires at 2026-11-21T12:30:00+00:00, within 1:00:00"


async def test_credential_is_renewed_before_it_expires() -> None:
    fake = _Fake(_lasting(7 * HOUR, whole=24 * HOUR), renewable=True)
    told = _Told(fake)
    assert await told.after(timedelta()) == []
    assert fake.renewals == 0
    assert await told.after(HOUR) == []
    assert fake.renewals == 1


async def test_short_credential_is_renewed_at_half_of_its_life() -> None:
    fake = _Fake(_lasting(timedelta(minutes=31), whole=HOUR), renewable=True)
    told = _Told(fake)
    await told.after(timedelta())
    assert fake.renewals == 0
    await told.after(timedelta(minutes=1))
    assert fake.renewals == 1


async def test_failing_renewal_is_announced_once_and_tried_again() -> None:
    fake = _Fake(_lasting(2 * HOUR, whole=24 * HOUR), renewable=True, fails="no route to host")
    told = _Told(fake)
    assert await told.after(timedelta()) == ["renewal_failed", "expiring"]
    assert "grid could not be renewed: no route to host" in told.notices[0].message
    assert await told.after(timedelta(seconds=30)) == []
    assert fake.renewals == 1
    assert await told.after(timedelta(seconds=31)) == []
    assert fake.renewals == 2
    fake.fails = ""
    assert await told.after(timedelta(minutes=2)) == ["renewed"]


async def test_broken_plugin_does_not_hide_the_others(tmp_path: Path) -> None:
    class Broken(_Fake):
        def status(self) -> Credential:
            raise RuntimeError("a secret may stand here")

    credentials = Credentials({"broken": Broken(Credential(present=True)), "good": _Fake(Credential(present=True))})
    await credentials.refresh()
    assert credentials.known("good").present
    assert credentials.known("broken").trouble == "its plug-in failed with RuntimeError: see the log"


async def test_folder_that_cannot_be_written_is_a_failed_renewal(tmp_path: Path) -> None:
    options = {"file": tmp_path / "nowhere" / "proxy", "myproxy": {"server": "localhost", "username": "ada"}}
    providers = open_all({"grid": CredentialSettings(kind="x509", options=options)})
    notices: list[Notice] = []

    async def announce(some: Sequence[Notice]) -> None:
        notices.extend(some)

    await Keeper(Credentials(providers), KeeperSettings(), announce).step()
    assert [notice.what for notice in notices] == [What.RENEWAL_FAILED, What.MISSING]


async def test_passphrase_goes_in_by_stdin_and_is_no_argument(tmp_path: Path) -> None:
    spy = _secret(tmp_path / "spy", f'#!/bin/sh\necho "$@" > {tmp_path}/argv\ncat > {tmp_path}/stdin\n', 0o700)
    passphrase = _secret(tmp_path / "passphrase", "open sesame\n")
    server = {"server": "localhost", "username": "ada", "passphrase_file": passphrase, "command": str(spy)}
    options = {"file": tmp_path / "proxy", "myproxy": server}
    proxy = open_all({"grid": CredentialSettings(kind="x509", options=options)})["grid"]
    with pytest.raises(RenewalFailed, match="what localhost gave is no proxy"):
        await proxy.renew()
    assert "sesame" not in (tmp_path / "argv").read_text()
    assert (tmp_path / "stdin").read_text() == "open sesame\n"


async def test_since_is_when_it_expired_or_was_first_missed() -> None:
    expired = datetime.now(UTC) - HOUR
    fake = _Fake(Credential(present=True, expires=expired))
    credentials = Credentials({"grid": fake})
    await credentials.refresh()
    assert credentials.since("grid") == expired
    fake.credential = Credential(present=False)
    await credentials.refresh()
    first = credentials.since("grid")
    await asyncio.sleep(0.01)
    await credentials.refresh()
    assert first is not None
    assert credentials.since("grid") == first
    fake.credential = Credential(present=True)
    await credentials.refresh()
    assert credentials.since("grid") is None


def test_services_start_without_the_kinds() -> None:
    program = "import sys, khomas.kit.credentials; sys.exit('khomas.kit.credentials.x509' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
