"""Opens the credentials that the settings name."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from khomas.kit import plugins
from khomas.kit.config import ConfigError
from khomas.kit.credentials.interface import CredentialPlugin, CredentialProvider
from khomas.kit.filtering.fields import nearest

GROUP = "khomas.credentials"


class CredentialSettings(BaseModel):
    """One credential: which plug-in, and what that takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # Plug-in of the entry-point group `khomas.credentials`.
    kind: str
    options: dict[str, Any] = {}


def open_all(configured: Mapping[str, CredentialSettings]) -> dict[str, CredentialProvider]:
    """Open credentials by name. Raises `ConfigError`, which names the setting and repeats no value."""
    return {name: _open(name, settings) for name, settings in configured.items()}


def _open(name: str, settings: CredentialSettings) -> CredentialProvider:
    known = plugins.installed(GROUP)
    if settings.kind not in known:
        close = ", ".join(nearest(settings.kind, sorted(known))) or ", ".join(sorted(known))
        raise ConfigError(f"credentials.{name}.kind: there is no kind {settings.kind}, did you mean {close}?")
    plugin: CredentialPlugin[Any] = plugins.load(known[settings.kind])
    try:
        options = plugin.settings(**settings.options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        # The cause would repeat what was given.
        raise ConfigError(f"credentials.{name}.options: {wrong}") from None
    return plugin.open(name, options)
