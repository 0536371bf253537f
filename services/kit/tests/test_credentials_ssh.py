"""SSH keys in files and agents, and their certificates."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from khomas.kit.credentials.ssh import SshKey, SshOptions

HOUR = timedelta(hours=1)


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
