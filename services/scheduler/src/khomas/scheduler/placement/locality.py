"""Where the input of jobs lies: what share of its bytes is at which site."""

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

from khomas.kit.errors import DomainError
from khomas.scheduler.catalog import Catalog, Placed
from khomas.scheduler.intake.blueprint import Blueprint, Identity
from khomas.scheduler.storage import Storage

log = logging.getLogger(__name__)

# Share of the bytes by site, those that have any, by name.
Local: TypeAlias = tuple[tuple[str, float], ...]
_SITES_SECONDS = 60.0


@dataclass(slots=True)
class Locality:
    """Knows where files are; asks the catalogue and the storage, many in a call."""

    catalog: Catalog
    storage: Storage
    _sites: Mapping[str, str] = field(default_factory=dict)
    _until: float = 0.0

    async def sites_of(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """Sites where the files that exist can be read."""
        return {name: frozenset(sites) for name, (_, sites) in (await self._found(names)).items()}

    async def shares(self, inputs: Mapping[str, Sequence[str]]) -> dict[str, Local]:
        """Share of the input bytes by site for each job; where nobody answers none is known."""
        names = dict.fromkeys(name for some in inputs.values() for name in some)
        if not names:
            return {}
        try:
            found = await self._found(names)
        except grpc.aio.AioRpcError as error:
            log.warning("locality.unknown", extra={"code": error.code().name, "files": len(names)})
            return {}
        return {job: local_share([found[name] for name in some if name in found]) for job, some in inputs.items()}

    async def _found(self, names: Collection[str]) -> dict[str, tuple[int, Collection[str]]]:
        placed = await self.catalog.replicas(names)
        sites = await self._known_sites()
        return {name: (one.size_bytes, _at(one, sites)) for name, one in placed.items()}

    async def _known_sites(self) -> Mapping[str, str]:
        if time.monotonic() >= self._until:
            self._sites = await self.storage.sites()
            self._until = time.monotonic() + _SITES_SECONDS
        return self._sites


def inputs_of(blueprint: Blueprint, index: int, job: str) -> list[str]:
    """LFNs that a job reads, as far as they are known before; none where they cannot be filled in."""
    try:
        child = blueprint.child(index)
        values = blueprint.values(child, Identity(job, index))
        return [one.lfn for one in blueprint.inputs(child, values, {}) if one.lfn]
    except DomainError:
        return []  # the job fails with it when it is prepared


def local_share(files: Iterable[tuple[int, Collection[str]]]) -> Local:
    """Share of the bytes by site; empty files count as a byte."""
    total, by_site = 0, dict[str, int]()
    for size, sites in files:
        total += max(1, size)
        for site in sites:
            by_site[site] = by_site.get(site, 0) + max(1, size)
    return tuple((site, size / total) for site, size in sorted(by_site.items()))


def _at(one: Placed, sites: Mapping[str, str]) -> set[str]:
    return {site for element in one.storage_elements if (site := sites.get(element, ""))}
