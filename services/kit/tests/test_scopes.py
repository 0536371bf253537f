"""Scopes as capabilities, by the WLCG profile."""

from datetime import UTC, datetime

import pytest

from khomas.kit.auth.principal import Kind, Principal, allows
from khomas.kit.auth.scopes import EVERYTHING, Capability, ScopeInvalid, capabilities_of


def holder(*scopes: str) -> Principal:
    return Principal(
        vo="hess",
        issuer="https://issuer.example",
        subject="alice",
        kind=Kind.USER,
        groups=(),
        capabilities=capabilities_of(scopes),
        roles=(),
        token_id="1",
        expires_at=datetime(2030, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("scope", "capability"),
    [
        ("storage.modify:/foo", "storage.create"),
        ("catalog.modify:/foo", "catalog.create"),
        ("storage.read:/foo", "storage.read"),
    ],
)
def test_scope_allows(scope: str, capability: str) -> None:
    assert allows(holder(scope), capability, ["/foo/x"])


@pytest.mark.parametrize(
    ("scope", "capability"),
    [
        ("storage.modify:/foo", "storage.read"),
        ("storage.create:/foo", "storage.modify"),
        ("storage.stage:/foo", "storage.read"),
        ("storage.stage:/foo", "storage.poll"),
        ("Storage.Read:/foo", "storage.read"),
        ("catalog.modify:/foo", "catalog.delete"),
        ("storage.read:/foo", "catalog.read"),
        ("read:/foo", "storage.read"),
    ],
)
def test_scope_does_not_allow(scope: str, capability: str) -> None:
    assert not allows(holder(scope), capability, ["/foo/x"])


@pytest.mark.parametrize(
    "scope",
    [
        "storage.read",
        "storage.read:",
        "storage.read:foo",
        "storage.read:/foo/..",
        "storage.read:/foo/../",
        "catalog.read",
    ],
)
def test_path_capability_without_a_sound_path_makes_the_token_invalid(scope: str) -> None:
    with pytest.raises(ScopeInvalid):
        capabilities_of([scope])


def test_unknown_scopes_grant_nothing() -> None:
    assert capabilities_of(["openid", "offline_access", "compute.read:/x", "compute.everything"]) == ()


def test_all_paths_of_a_request_must_be_covered() -> None:
    assert not allows(holder("storage.read:/a", "storage.read:/b"), "storage.read", ["/a/1", "/b/1", "/c/1"])
    assert allows(holder("storage.read:/a", "storage.read:/b"), "storage.read", ["/a/1", "/b/1"])


def test_capability_without_path_needs_only_to_be_there() -> None:
    assert allows(holder("compute.cancel"), "compute.cancel")
    assert not allows(holder("compute.cancel"), "compute.create")


def test_everything_means_every_capability() -> None:
    assert allows(holder(*EVERYTHING), "admin")
    assert allows(holder(*EVERYTHING), "catalog.delete", ["/hess/x"])


def test_capability_is_written_as_its_scope() -> None:
    assert str(Capability("storage.read", "/a")) == "storage.read:/a"
    assert str(Capability("admin")) == "admin"
