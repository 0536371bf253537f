"""Settings that every service has in production, from the environment and an optional TOML file."""

import os
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class ConfigError(Exception):
    """Refuse to start; the message says which setting to change."""


class Profile(StrEnum):
    """How strict the host is: the production profile refuses the development issuer."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(_Part):
    """Certificates of the gRPC port; with `client_ca` callers must present a certificate of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class ServerSettings(_Part):
    """The gRPC port. Plaintext is accepted on loopback only."""

    listen: str = "127.0.0.1:7443"
    # A second port with nothing but the health service, in plaintext: probes of Kubernetes speak no TLS.
    health_listen: str = ""
    tls: TlsSettings | None = None
    max_message_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    max_calls: int = Field(default=512, gt=0)
    max_streams: int = Field(default=2048, gt=0)
    keepalive: timedelta = timedelta(seconds=30)
    keepalive_timeout: timedelta = timedelta(seconds=10)
    max_connection_age: timedelta | None = None
    # Between NOT_SERVING and refusing new calls, for clients to notice.
    drain_pause: timedelta = timedelta(seconds=2)
    drain_grace: timedelta = timedelta(seconds=20)
    # A stream that sent nothing for so long is a watcher: the drain sends it away instead of waiting.
    drain_idle: timedelta = timedelta(seconds=1)


class HttpSettings(_Part):
    """The HTTP door of services that have one."""

    listen: str = "127.0.0.1:0"
    # How clients reach the door, when that is not the address it listens at.
    public_url: str = ""


class IssuerSettings(_Part):
    """One trusted token issuer."""

    url: str
    vo: str
    # Where its keys are, if not where its OpenID discovery says.
    jwks_url: str = ""


class AuthSettings(_Part):
    """Whose tokens are accepted, and what groups may do."""

    issuers: tuple[IssuerSettings, ...] = ()
    # Audiences that mean this service, compared as they are.
    audiences: tuple[str, ...] = ()
    accept_any_audience: bool = True
    max_lifetime: timedelta = timedelta(hours=6)
    # Role name to scopes, and group to role names, for tokens that carry groups but no capability.
    roles: dict[str, tuple[str, ...]] = {}
    group_roles: dict[str, tuple[str, ...]] = {}
    # The token of this service towards the others; the file is read again when it changes.
    token_file: Path | None = None


class TelemetrySettings(_Part):
    """Logs are always written; traces and metrics only where they are asked for."""

    log_level: str = "INFO"
    otlp_endpoint: str = ""
    otlp_insecure: bool = False
    trace_ratio: float = Field(default=0.01, ge=0, le=1)
    metrics_listen: str = ""


class ServiceSettings(BaseSettings):
    """Base of a service's settings: `class CatalogSettings(ServiceSettings, env_prefix="KHOMAS_CATALOG_")`.

    A value comes from the environment (`KHOMAS_CATALOG_SERVER__LISTEN`), else from the TOML file that
    `KHOMAS_CATALOG_CONFIG_FILE` names, else from its default.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_nested_delimiter="__")

    profile: Profile = Profile.PRODUCTION
    vo: str = "local"
    state: Path = Path("/var/lib/khomas")
    database_url: SecretStr = SecretStr("")
    # Area to gRPC target of the other services: {"storage": "dns:///storage:7443"}.
    peers: dict[str, str] = {}
    peers_ca: Path | None = None
    # What we show to those who ask for a certificate; without these the one of our own gRPC port.
    peers_certificate: Path | None = None
    peers_key: Path | None = None
    server: ServerSettings = ServerSettings()
    http: HttpSettings = HttpSettings()
    auth: AuthSettings = AuthSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the TOML file behind the environment."""
        prefix = settings_cls.model_config.get("env_prefix", "")
        file = os.environ.get(f"{prefix}CONFIG_FILE")
        if file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    def redacted(self) -> dict[str, Any]:
        """Return the settings for printing, secrets starred."""
        return self.model_dump(mode="json")
