"""How a backend is told where its credential is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from khomas.kit.config import ConfigError
from khomas.kit.credentials import CredentialSettings, open_all
from khomas.scheduler.backends.arc import plugin as arc
from khomas.scheduler.backends.slurm import plugin as slurm
from khomas.scheduler.backends.spool.backend import SpooledBackend
from khomas.scheduler.backends.ssh import plugin as ssh
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.placement import sites
from khomas.scheduler.placement.sites import open_sites


def _settings(tmp_path: Path, kind: str, credential: Mapping[str, Any], **options: Any) -> SchedulerSettings:
    backend = BackendSettings(kind=kind, credential="mine", options={"spool": tmp_path, **options})
    return SchedulerSettings(backends={"farm": backend}, credentials={"mine": CredentialSettings(**credential)})


def test_commands_of_slurm_get_the_environment_of_tickets(tmp_path: Path) -> None:
    tickets = {"kind": "kerberos", "options": {"cache": tmp_path / "cache", "config": tmp_path / "krb5.conf"}}
    settings = _settings(tmp_path, "slurm", tickets, env={"SLURM_CONF": "/etc/slurm.conf"})
    opened = open_sites(settings, tmp_path)
    credential = opened.wallet.credentials["mine"]
    shown = sites.shown(slurm, settings.backends["farm"].options, credential)
    assert isinstance(opened["farm"].backend, SpooledBackend)
    assert shown == {
        "env": {
            "KRB5CCNAME": f"FILE:{tmp_path / 'cache'}",
            "KRB5_CONFIG": str(tmp_path / "krb5.conf"),
            "SLURM_CONF": "/etc/slurm.conf",
        }
    }


def test_host_behind_ssh_gets_the_key(tmp_path: Path) -> None:
    key = {"kind": "ssh", "options": {"key": tmp_path / "key"}}
    settings = _settings(tmp_path, "ssh", key, ssh="prod@farm")
    opened = open_sites(settings, tmp_path)
    credential = opened.wallet.credentials["mine"]
    assert sites.shown(ssh, settings.backends["farm"].options, credential) == {"ssh_key": tmp_path / "key"}
    set_by_hand = {"ssh_key": tmp_path / "other"}
    assert sites.shown(ssh, set_by_hand, credential) == {}


@pytest.mark.parametrize(("kind", "setting"), [("x509", "certificate"), ("bearer", "token")])
def test_compute_element_gets_the_file(tmp_path: Path, kind: str, setting: str) -> None:
    credential = open_all({"mine": CredentialSettings(kind=kind, options={"file": tmp_path / "file"})})["mine"]
    assert sites.shown(arc, {"url": "https://ce.example/arex"}, credential) == {setting: tmp_path / "file"}


def test_credential_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    settings = _settings(tmp_path, "ssh", {"kind": "kerberos"}, ssh="prod@farm")
    with pytest.raises(ConfigError, match=r"backends\.farm\.credential: a backend of kind ssh has no use for one"):
        open_sites(settings, tmp_path)
