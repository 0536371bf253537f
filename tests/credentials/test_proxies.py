"""Proxies made by voms-proxy-fake and grid-proxy-init, renewed by a real MyProxy server."""

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from khomas.kit.credentials import RenewalFailed
from khomas.kit.credentials.x509 import MyProxyOptions, ProxyFile, ProxyOptions
from tests.testbeds import myproxy
from tests.testbeds.myproxy import MyProxyBed

PRODUCTION = "/testvo/Role=production/Capability=NULL"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MyProxyBed]:
    with myproxy.running(tmp_path_factory.mktemp("myproxy")) as running:
        yield running


def _left(proxy: ProxyFile) -> timedelta:
    left = proxy.status().left(datetime.now(UTC))
    assert left is not None
    return left


def _hours(left: timedelta) -> float:
    return round(left / timedelta(hours=1), 1)


def _options(bed: MyProxyBed, username: str, passphrase: Path | None) -> MyProxyOptions:
    return MyProxyOptions(
        server=bed.host,
        port=bed.port,
        username=username,
        hours=12,
        passphrase_file=passphrase,
        env=bed.environment,
    )


def test_voms_proxy_is_read(bed: MyProxyBed, tmp_path: Path) -> None:
    path = bed.voms.proxy(tmp_path / "proxy", "3:00", [PRODUCTION, "/testvo"])
    proxy = ProxyFile("grid", ProxyOptions(file=path))
    known = proxy.status()
    assert known.present
    assert known.subject == bed.voms.user == "/O=Khomas Test/CN=Ada Robot"
    assert known.can == (PRODUCTION, "/testvo")
    assert _hours(_left(proxy)) == 3.0
    assert proxy.environment() == {"X509_USER_PROXY": str(path)}


def test_attributes_that_end_before_the_proxy_end_it(bed: MyProxyBed, tmp_path: Path) -> None:
    path = bed.voms.proxy(tmp_path / "proxy", "12:00", attribute_hours="2:00")
    assert _hours(_left(ProxyFile("grid", ProxyOptions(file=path)))) == 2.0


def test_proxy_without_attributes_is_read(bed: MyProxyBed, tmp_path: Path) -> None:
    known = ProxyFile("grid", ProxyOptions(file=bed.voms.plain_proxy(tmp_path / "proxy"))).status()
    assert (known.subject, known.can) == (bed.voms.user, ())


def test_proxy_that_others_can_read_is_refused(bed: MyProxyBed, tmp_path: Path) -> None:
    path = bed.voms.plain_proxy(tmp_path / "proxy")
    path.chmod(0o640)
    known = ProxyFile("grid", ProxyOptions(file=path)).status()
    assert (known.present, known.remedy) == (False, f"chmod 600 {path}")


def test_certificate_without_key_is_no_proxy(bed: MyProxyBed, tmp_path: Path) -> None:
    path = tmp_path / "proxy"
    path.touch(mode=0o600)
    path.write_bytes(bed.voms.user_certificate.read_bytes())
    assert ProxyFile("grid", ProxyOptions(file=path)).status().trouble.endswith("it has no private key")


async def test_myproxy_renews_with_a_passphrase(bed: MyProxyBed, tmp_path: Path) -> None:
    path = bed.voms.plain_proxy(tmp_path / "proxy", "1:00")
    proxy = ProxyFile("grid", ProxyOptions(file=path, myproxy=_options(bed, myproxy.USERNAME, bed.passphrase)))
    assert _hours(_left(proxy)) == 1.0
    await proxy.renew()
    assert _hours(_left(proxy)) == 12.0
    assert proxy.status().subject == bed.voms.user
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["proxy"]  # noqa: PTH208


async def test_myproxy_gives_a_proxy_where_there_is_none(bed: MyProxyBed, tmp_path: Path) -> None:
    options = ProxyOptions(file=tmp_path / "proxy", myproxy=_options(bed, myproxy.USERNAME, bed.passphrase))
    proxy = ProxyFile("grid", options)
    assert not proxy.status().present
    await proxy.renew()
    assert proxy.status().present


async def test_myproxy_renews_what_it_is_shown(bed: MyProxyBed, tmp_path: Path) -> None:
    path = bed.voms.plain_proxy(tmp_path / "proxy", "1:00")
    options = _options(bed, myproxy.RENEWABLE, None).model_copy(update={"env": bed.renewer})
    proxy = ProxyFile("grid", ProxyOptions(file=path, myproxy=options))
    await proxy.renew()
    assert _hours(_left(proxy)) == 12.0


async def test_wrong_passphrase_is_said_and_not_shown(
    bed: MyProxyBed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text("not-the-right-passphrase\n")
    path = bed.voms.plain_proxy(tmp_path / "proxy", "1:00")
    before = path.read_bytes()
    proxy = ProxyFile("grid", ProxyOptions(file=path, myproxy=_options(bed, myproxy.USERNAME, secret)))
    with pytest.raises(RenewalFailed, match="myproxy-logon ended with exit code 1") as raised:
        await proxy.renew()
    assert "not-the-right-passphrase" not in str(raised.value) + caplog.text + repr(proxy.status())
    assert path.read_bytes() == before


async def test_exposed_passphrase_is_refused(bed: MyProxyBed, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text(myproxy.PASSPHRASE)
    secret.chmod(0o644)
    options = ProxyOptions(file=tmp_path / "proxy", myproxy=_options(bed, myproxy.USERNAME, secret))
    with pytest.raises(RenewalFailed, match=f"chmod 600 {secret}"):
        await ProxyFile("grid", options).renew()


async def test_command_of_the_site_renews_attributes(bed: MyProxyBed, tmp_path: Path) -> None:
    path = bed.voms.proxy(tmp_path / "proxy", "1:00", [PRODUCTION])
    command = tuple(bed.voms.command(path, "10:00", [PRODUCTION]))
    proxy = ProxyFile("grid", ProxyOptions(file=path, renew_command=command))
    assert proxy.status().renews
    await proxy.renew()
    assert _hours(_left(proxy)) == 10.0
    assert proxy.status().can == (PRODUCTION,)
