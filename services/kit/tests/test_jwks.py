"""The keys of a remote issuer: refreshed, kept through outages, never fetched more than needed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from khomas.kit.auth.jwks import COOLDOWN, REFRESH, STALE, RemoteKeys
from khomas.kit.auth.keys import KeysUnavailable, keys_of
from khomas.kit.auth.verifier import Issuer, Verifier
from khomas.kit.config import AuthSettings, ConfigError
from khomas.kit.errors import UpstreamUnavailable
from khomas.kit.hosting import reserved_socket

PRIVATE = ec.generate_private_key(ec.SECP256R1())


def published(key: Any = PRIVATE, **members: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
    entry: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return entry | {"kid": "1"} | members


@dataclass
class Clock:
    """A clock that tests move."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeIssuer:
    """An issuer that tests can break."""

    url: str
    keys: list[dict[str, Any]]
    up: bool = True
    fetches: int = 0
    body: bytes | None = None
    jwks_uri: str = ""
    fetched_twice: asyncio.Event = field(default_factory=asyncio.Event)

    async def discovery(self, _: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": self.jwks_uri or f"{self.url}/jwks"})

    async def jwks(self, _: web.Request) -> web.Response:
        self.fetches += 1
        if self.fetches == 2:
            self.fetched_twice.set()
        if not self.up:
            raise web.HTTPServiceUnavailable
        return web.Response(body=self.body) if self.body else web.json_response({"keys": self.keys})


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    bound = reserved_socket("127.0.0.1:0")
    fake = FakeIssuer(f"http://127.0.0.1:{bound.getsockname()[1]}", [published()])
    application = web.Application()
    application.router.add_get("/.well-known/openid-configuration", fake.discovery)
    application.router.add_get("/jwks", fake.jwks)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.SockSite(runner, bound).start()
    yield fake
    await runner.cleanup()


async def test_key_is_found_by_discovery_once_for_all_callers(issuer: FakeIssuer, tmp_path: Path) -> None:
    keys = RemoteKeys(issuer.url, tmp_path)
    found = await asyncio.gather(*[keys.key("1") for _ in range(50)])
    assert all(key is not None and key.algorithm == "ES256" for key in found)
    assert issuer.fetches == 1


async def test_unknown_keys_cost_one_fetch_per_cooldown(issuer: FakeIssuer, tmp_path: Path) -> None:
    clock = Clock()
    keys = RemoteKeys(issuer.url, tmp_path, clock=clock)
    assert [await keys.key(str(number)) for number in range(10, 60)] == [None] * 50
    assert issuer.fetches == 1
    clock.now += COOLDOWN + 1
    assert await keys.key("60") is None
    assert issuer.fetches == 2


async def test_new_key_of_the_issuer_is_learnt_and_announced(issuer: FakeIssuer, tmp_path: Path) -> None:
    clock, changes = Clock(), []
    keys = RemoteKeys(issuer.url, tmp_path, clock=clock)
    await keys.key("1")
    keys.when_changed(lambda: changes.append(1))
    issuer.keys = [published(kid="2")]
    clock.now += COOLDOWN + 1
    assert await keys.key("2") is not None
    assert await keys.key("1") is None
    assert changes == [1]


async def test_verification_goes_on_for_two_days_without_the_issuer(issuer: FakeIssuer, tmp_path: Path) -> None:
    clock = Clock()
    settings = AuthSettings(audiences=("us",))
    first = Verifier([Issuer(issuer.url, "hess", RemoteKeys(issuer.url, tmp_path, clock=clock))], settings, clock)
    assert (await first.verify(_token(issuer, clock))).subject == "alice"
    issuer.up = False
    clock.now += STALE - 10
    assert (await first.verify(_token(issuer, clock))).subject == "alice"
    restarted = RemoteKeys(issuer.url, tmp_path, clock=clock)
    second = Verifier([Issuer(issuer.url, "hess", restarted)], settings, clock)
    assert (await second.verify(_token(issuer, clock))).subject == "alice"
    clock.now += 20
    with pytest.raises(UpstreamUnavailable):
        await second.verify(_token(issuer, clock))


def _token(issuer: FakeIssuer, clock: Clock) -> str:
    claims = {
        "wlcg.ver": "1.0",
        "iss": issuer.url,
        "sub": "alice",
        "aud": "us",
        "iat": int(clock.now),
        "exp": int(clock.now) + 600,
        "jti": "1",
        "scope": "compute.read",
    }
    return jwt.encode(claims, PRIVATE, algorithm="ES256", headers={"kid": "1"})


async def test_old_keys_are_used_while_they_are_refreshed(issuer: FakeIssuer, tmp_path: Path) -> None:
    clock = Clock()
    keys = RemoteKeys(issuer.url, tmp_path, clock=clock)
    await keys.key("1")
    clock.now += REFRESH + 1
    assert await keys.key("1") is not None
    await asyncio.wait_for(issuer.fetched_twice.wait(), 5)


async def test_issuer_that_never_answered_is_unavailable_and_not_hammered(issuer: FakeIssuer, tmp_path: Path) -> None:
    issuer.up = False
    keys = RemoteKeys(issuer.url, tmp_path)
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            await keys.key("1")
    assert issuer.fetches == 1


@pytest.mark.parametrize("body", [b"x" * (1024 * 1024 + 1), b"[]", b'{"keys": 1}', b"{"])
async def test_answer_that_is_no_key_set_is_not_used(issuer: FakeIssuer, tmp_path: Path, body: bytes) -> None:
    issuer.body = body
    with pytest.raises(KeysUnavailable):
        await RemoteKeys(issuer.url, tmp_path).key("1")


async def test_keys_on_another_host_are_not_fetched_unless_configured(issuer: FakeIssuer, tmp_path: Path) -> None:
    elsewhere = issuer.url.replace("127.0.0.1", "localhost") + "/jwks"
    issuer.jwks_uri = elsewhere
    with pytest.raises(KeysUnavailable):
        await RemoteKeys(issuer.url, tmp_path).key("1")
    assert await RemoteKeys(issuer.url, tmp_path, jwks_url=elsewhere).key("1") is not None


async def test_keys_at_hand_survive_a_broken_file(issuer: FakeIssuer, tmp_path: Path) -> None:
    await RemoteKeys(issuer.url, tmp_path).key("1")
    _break_the_only_file(tmp_path)
    assert await RemoteKeys(issuer.url, tmp_path).key("1") is not None


def _break_the_only_file(folder: Path) -> None:
    [file] = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("{")


def test_issuer_without_https_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        RemoteKeys("http://issuer.example", tmp_path)


@pytest.mark.parametrize(
    "members",
    [{"kid": None}, {"use": "enc"}, {"alg": "ES384"}, {"alg": "HS256"}, {"crv": "P-384"}, {"kty": "oct"}, {"x": "AA"}],
)
def test_key_that_is_not_for_signing_is_left_out(members: dict[str, Any]) -> None:
    assert keys_of({"keys": [published(**members)]}) == {}


def test_weak_rsa_key_is_left_out() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # that is the point
    assert keys_of({"keys": [published(weak)]}) == {}


def test_lifetimes_are_those_of_the_profile() -> None:
    assert timedelta(seconds=REFRESH) == timedelta(hours=6)
    assert timedelta(seconds=STALE) == timedelta(days=2)
