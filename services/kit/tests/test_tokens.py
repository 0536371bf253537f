"""Tokens that services and tools present."""

import os
from pathlib import Path

import pytest

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.auth.tokens import FileTokens, IssuedTokens, discover
from khomas.kit.auth.verifier import Verifier
from khomas.kit.config import AuthSettings, ConfigError


def test_key_of_the_issuer_is_private_and_kept(tmp_path: Path) -> None:
    first = DevelopmentIssuer.open(tmp_path, "hess")
    assert (tmp_path / "issuer.json").stat().st_mode & 0o777 == 0o600
    assert DevelopmentIssuer.open(tmp_path, "hess").url == first.url


async def test_installations_do_not_trust_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = (DevelopmentIssuer.open(tmp_path / name, "hess") for name in "ab")
    verifier = Verifier([ours.trusted], AuthSettings(audiences=(ours.audience,)))
    assert (await verifier.verify(IssuedTokens(ours, "service:a").token())).subject == "service:a"
    with pytest.raises(Exception, match="issuer"):
        await verifier.verify(IssuedTokens(theirs, "service:a").token())


def test_token_is_issued_once_while_it_lasts(tmp_path: Path) -> None:
    tokens = IssuedTokens(DevelopmentIssuer.open(tmp_path, "hess"), "service:a")
    assert tokens.token() == tokens.token()


def test_token_file_is_read_without_its_white_space(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n abc \r\n")
    assert FileTokens(tmp_path / "token").token() == "abc"


def test_discovery_follows_the_order_of_the_specification(tmp_path: Path) -> None:
    (tmp_path / "named").write_text(" from file\n")
    (tmp_path / f"bt_u{os.geteuid()}").write_text("from runtime\n")
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    named = runtime | {"BEARER_TOKEN_FILE": str(tmp_path / "named")}
    assert discover(named | {"BEARER_TOKEN": " from variable "}) == "from variable"
    assert discover(named) == "from file"
    assert discover(runtime) == "from runtime"


def test_named_token_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        discover({"BEARER_TOKEN_FILE": str(tmp_path / "none")})
