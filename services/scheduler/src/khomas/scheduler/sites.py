"""The configured backends, with what is known of each now."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from khomas.kit import plugins
from khomas.scheduler.backends.interface import Backend, BackendPlugin, ComputeResource
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.matching import Offer
from khomas.scheduler.signals import Signal

log = logging.getLogger(__name__)

PLUGINS = "khomas.scheduler.backends"
_LOCAL = BackendSettings(kind="local")


@dataclass(slots=True)
class Site:
    """One backend at work."""

    name: str
    settings: BackendSettings
    backend: Backend
    # Attempts that it has, by uid; kept by the engine.
    attempts: set[str] = field(default_factory=set)
    resources: list[ComputeResource] = field(default_factory=list)
    observe_time: datetime | None = None
    # Its last error; empty when it answers.
    trouble: str = ""
    # Held while jobs are handed over, so that no look at the journal goes past them.
    handover: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Set when it has got jobs.
    got_jobs: Signal = field(default_factory=Signal)

    def offer(self) -> Offer:
        """What the choice of a backend is made from."""
        return Offer(
            self.name,
            self.backend.capabilities.kind,
            self.settings.site,
            tuple(self.resources),
            len(self.attempts),
            self.settings.max_jobs,
            self.trouble,
            self.backend.capabilities.native_options,
        )

    async def look(self, deadline: float) -> None:
        """Ask for its resources; an error marks it as not answering."""
        try:
            async with asyncio.timeout(deadline):
                self.resources = await self.backend.list_resources()
            self.trouble = ""
        except Exception as error:
            log.warning("backend.unreachable", exc_info=True, extra={"backend": self.name})
            self.trouble = f"{type(error).__name__}: {error}"
        self.observe_time = datetime.now(UTC)


class Sites:
    """All configured backends by name."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = {site.name: site for site in sites}

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __contains__(self, name: str) -> bool:
        return name in self._sites

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def offers(self) -> list[Offer]:
        """What the choice of a backend is made from, by name."""
        return [site.offer() for _, site in sorted(self._sites.items())]

    @property
    def by_name(self) -> Mapping[str, str]:
        """Where each backend is."""
        return {name: site.settings.site for name, site in self._sites.items()}

    async def close(self) -> None:
        """Let go of all connections; jobs go on."""
        for site in self._sites.values():
            await site.backend.aclose()


def open_sites(settings: SchedulerSettings, state: Path) -> Sites:
    """Open the configured backends, or this machine when there are none."""
    configured = settings.backends or {"local": _LOCAL}
    return Sites(Site(name, one, _open(name, one, state)) for name, one in configured.items())


def _open(name: str, settings: BackendSettings, state: Path) -> Backend:
    point = plugins.installed(PLUGINS)[settings.kind]
    plugin: BackendPlugin[object] = plugins.load(point)
    options = dict(settings.options)
    if settings.kind == "local":
        options["spool"] = Path(options.get("spool", state / "backends" / name))
    return plugin.open(plugin.settings(**options))
