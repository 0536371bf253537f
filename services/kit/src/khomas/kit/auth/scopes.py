"""The capabilities of Khomas and the WLCG profile, and how scopes say them."""

from collections.abc import Iterable
from dataclasses import dataclass

from khomas.kit.auth.paths import decoded_path

WITH_PATH = frozenset(
    f"{area}.{verb}"
    for area, verbs in {
        "storage": ("read", "create", "modify", "stage", "poll"),
        "catalog": ("read", "create", "modify", "delete"),
    }.items()
    for verb in verbs
)
WITHOUT_PATH = frozenset(
    {
        *(f"compute.{verb}" for verb in ("read", "create", "modify", "cancel")),
        *(f"{area}.{verb}" for area in ("bookkeeping", "archive") for verb in ("read", "write")),
        "admin",
        "host.auth",
    }
)
# Scopes for everything: what the user of an embedded installation has.
EVERYTHING = tuple(sorted({f"{name}:/" for name in WITH_PATH} | (WITHOUT_PATH - {"host.auth"})))
# Capability to the other one that contains it. Stage implies nothing; modify does not contain read.
CONTAINED_IN = {"storage.create": "storage.modify", "catalog.create": "catalog.modify"}


class ScopeInvalid(Exception):
    """A scope that makes its whole token invalid."""


@dataclass(frozen=True, slots=True)
class Capability:
    """A right, for a path where its name wants one ("" where not)."""

    name: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.path}" if self.path else self.name


def capabilities_of(scopes: Iterable[str]) -> tuple[Capability, ...]:
    """Return what scopes grant; unknown ones grant nothing, a bad path raises ScopeInvalid."""
    return tuple(capability for scope in scopes if (capability := _capability(scope)) is not None)


def _capability(scope: str) -> Capability | None:
    name, colon, path = scope.partition(":")
    if name in WITH_PATH:
        plain = decoded_path(path) if path else None
        if plain is None:
            raise ScopeInvalid(f"the scope {scope!r} needs an absolute path without odd segments")
        return Capability(name, plain)
    if name in WITHOUT_PATH and not colon:
        return Capability(name)
    return None
