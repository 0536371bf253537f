"""Tokens that a service or a tool presents itself."""

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from khomas.kit.auth.issuer import DevelopmentIssuer
from khomas.kit.config import ConfigError

_LIFETIME = timedelta(hours=1)
_REFRESH_BEFORE = timedelta(minutes=10).total_seconds()
_LOOK_AGAIN = 5.0
_C99_WHITESPACE = " \t\n\v\f\r"


class TokenSource(Protocol):
    """Gives a token that is valid now."""

    def token(self) -> str:
        """Return the token; cheap enough to be asked for every call."""


class IssuedTokens:
    """Tokens of an embedded service, from the development issuer."""

    def __init__(self, issuer: DevelopmentIssuer, subject: str) -> None:
        self._issuer = issuer
        self._subject = subject
        self._token = ""
        self._refresh_at = 0.0

    def token(self) -> str:
        """Return the token, issued anew ten minutes before it expires."""
        if time.time() >= self._refresh_at:
            self._token = self._issuer.token(self._subject, expires_in=_LIFETIME)
            self._refresh_at = time.time() + _LIFETIME.total_seconds() - _REFRESH_BEFORE
        return self._token


class FileTokens:
    """Tokens from a file that somebody else keeps fresh."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._token = ""
        self._look_at = 0.0

    def token(self) -> str:
        """Return what the file holds; it is read again every few seconds."""
        if time.monotonic() >= self._look_at:
            self._token = self._file.read_text().strip(_C99_WHITESPACE)
            self._look_at = time.monotonic() + _LOOK_AGAIN
        return self._token


def discover(environment: Mapping[str, str]) -> str | None:
    """Return the token that WLCG Bearer Token Discovery finds, None if there is none."""
    if token := environment.get("BEARER_TOKEN", "").strip(_C99_WHITESPACE):
        return token
    if named := environment.get("BEARER_TOKEN_FILE"):
        return _content(Path(named), must_exist=True)
    name = f"bt_u{os.geteuid()}"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        held = _content(Path(runtime, name), must_exist=False)
        if held is not None:
            return held
    # The path is the specification's; the file's owner is checked because anybody may write there.
    return _content(Path("/tmp", name), must_exist=False)  # noqa: S108


def _content(file: Path, *, must_exist: bool) -> str | None:
    try:
        if not must_exist and file.stat().st_uid != os.geteuid():
            return None
        return file.read_text().strip(_C99_WHITESPACE) or None
    except OSError as error:
        if must_exist:
            raise ConfigError(f"BEARER_TOKEN_FILE cannot be read: {error}") from error
        return None
