"""When credentials are renewed and warned about."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
LADDER = KeeperSettings().warn_before


def _secret(path: Path, content: str, mode: int = 0o600) -> Path:
    path.touch()
    path.chmod(mode)
    path.write_text(content)
    return path


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
