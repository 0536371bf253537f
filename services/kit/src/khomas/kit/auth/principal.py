"""Who makes a call, as handlers see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from khomas.kit.auth.paths import Cover
from khomas.kit.auth.scopes import CONTAINED_IN, WITH_PATH, Capability


class Kind(StrEnum):
    """What sort of caller it is, for logs and accounting; all it grants is `current_owner`."""

    USER = "user"
    HOST = "host"
    SERVICE = "service"
    PILOT = "pilot"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller and its rights."""

    vo: str
    issuer: str
    subject: str
    kind: Kind
    groups: tuple[str, ...]
    capabilities: tuple[Capability, ...]
    roles: tuple[str, ...]
    token_id: str
    expires_at: datetime
    covers: Mapping[str, Cover] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        paths: dict[str, list[str]] = {}
        for capability in self.capabilities:
            paths.setdefault(capability.name, []).append(capability.path)
        for part, whole in CONTAINED_IN.items():
            if whole in paths:
                paths.setdefault(part, []).extend(paths[whole])
        covers = {name: Cover(covered) for name, covered in paths.items()}
        object.__setattr__(self, "covers", covers)  # frozen, but this is still the making of it


def refused_path(principal: Principal, capability: str, paths: Sequence[str]) -> str | None:
    """Return the first path for which the capability is missing, None if it is there for all.

    The paths must have passed `odd_path`. For a capability without paths the refused path is "".
    """
    cover = principal.covers.get(capability)
    if cover is None:
        return paths[0] if paths else ""
    return cover.uncovered(paths) if capability in WITH_PATH else None


def allows(principal: Principal, capability: str, paths: Sequence[str] = ()) -> bool:
    """Tell whether the principal has the capability for all the paths."""
    return refused_path(principal, capability, paths) is None
