"""Tickets of a real Kerberos realm."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from khomas.kit.credentials import RenewalFailed
from khomas.kit.credentials.kerberos import KerberosCache, KerberosOptions
from tests.testbeds import kerberos
from tests.testbeds.kerberos import KerberosBed


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KerberosBed]:
    with kerberos.running(tmp_path_factory.mktemp("kerberos")) as running:
        yield running


def _hours(cache: KerberosCache) -> float:
    left = cache.status().left(datetime.now(UTC))
    assert left is not None
    return round(left / timedelta(hours=1), 1)


def test_tickets_are_read(bed: KerberosBed, tmp_path: Path) -> None:
    path = bed.tickets(tmp_path / "cache", "-l", "2h", "-r", "3d")
    cache = KerberosCache("site", KerberosOptions(cache=path, config=bed.config))
    known = cache.status()
    assert known.subject == kerberos.PERSON
    assert known.can == (f"krbtgt/{kerberos.REALM}@{kerberos.REALM}",)
    assert _hours(cache) == 2.0
    assert known.renews
    assert known.renewable_until is not None
    assert known.renewable_until - datetime.now(UTC) > timedelta(days=2.9)
    assert cache.environment() == {"KRB5CCNAME": f"FILE:{path}", "KRB5_CONFIG": str(bed.config)}


async def test_ticket_is_renewed_and_still_accepted(bed: KerberosBed, tmp_path: Path) -> None:
    path = bed.tickets(tmp_path / "cache", "-l", "2h", "-r", "3d")
    cache = KerberosCache("site", KerberosOptions(cache=path, config=bed.config))
    before = cache.status()
    assert before.renewable_until is not None
    await cache.renew()
    after = cache.status()
    assert after.expires is not None
    assert before.expires is not None
    assert after.expires >= before.expires
    assert path.stat().st_mode & 0o777 == 0o600
    assert bed.accepts(path)


async def test_keytab_gives_tickets_where_there_are_none(bed: KerberosBed, tmp_path: Path) -> None:
    options = KerberosOptions(
        cache=tmp_path / "cache", config=bed.config, keytab=bed.keytab, principal=kerberos.ROBOT, lifetime="1h"
    )
    cache = KerberosCache("site", options)
    assert not cache.status().present
    assert cache.renewable
    await cache.renew()
    assert cache.status().subject == kerberos.ROBOT
    assert _hours(cache) == 1.0
    assert bed.accepts(tmp_path / "cache")


def test_ticket_without_renewal_lasts_as_long_as_it_does(bed: KerberosBed, tmp_path: Path) -> None:
    path = bed.tickets(tmp_path / "cache", "-l", "2h")
    cache = KerberosCache("site", KerberosOptions(cache=path, config=bed.config))
    now = datetime.now(UTC)
    assert not cache.renewable
    assert cache.status().covers(now, timedelta(hours=1), timedelta(minutes=5))
    assert not cache.status().covers(now, timedelta(hours=3), timedelta(minutes=5))


def test_renewable_ticket_covers_jobs_until_it_can_no_longer_be_renewed(bed: KerberosBed, tmp_path: Path) -> None:
    path = bed.tickets(tmp_path / "cache", "-l", "2h", "-r", "3d")
    known = KerberosCache("site", KerberosOptions(cache=path, config=bed.config)).status()
    now = datetime.now(UTC)
    assert known.covers(now, timedelta(days=2), timedelta(minutes=5))
    assert not known.covers(now, timedelta(days=4), timedelta(minutes=5))


async def test_refused_renewal_keeps_the_tickets(bed: KerberosBed, tmp_path: Path) -> None:
    path = bed.tickets(tmp_path / "cache", "-l", "2h")
    before = path.read_bytes()
    with pytest.raises(RenewalFailed, match="kinit ended with exit code 1: kinit: "):
        await KerberosCache("site", KerberosOptions(cache=path, config=bed.config)).renew()
    assert path.read_bytes() == before


async def test_exposed_keytab_is_refused(bed: KerberosBed, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    keytab.write_bytes(bed.keytab.read_bytes())
    keytab.chmod(0o644)
    options = KerberosOptions(cache=tmp_path / "cache", config=bed.config, keytab=keytab, principal=kerberos.ROBOT)
    with pytest.raises(RenewalFailed, match=f"chmod 600 {keytab}"):
        await KerberosCache("site", options).renew()


@pytest.mark.parametrize("size", [0, 1, 2, 40, 200])
def test_cut_cache_is_refused(bed: KerberosBed, tmp_path: Path, size: int) -> None:
    whole = bed.tickets(tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    cut.touch(mode=0o600)
    cut.write_bytes(whole[:size])
    known = KerberosCache("site", KerberosOptions(cache=cut, config=bed.config)).status()
    assert not known.present
    assert known.trouble.startswith(f"{cut}: ")
