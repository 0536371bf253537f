"""The configured backends, with what is known of each now."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

from khomas.api.scheduler.v1.job_command_pb2 import JobCommand
from khomas.kit import plugins
from khomas.kit.config import ConfigError
from khomas.kit.credentials import CredentialProvider, Credentials, open_all
from khomas.kit.filtering.fields import nearest
from khomas.scheduler.backends import received
from khomas.scheduler.backends.interface import Backend, BackendPlugin, ComputeResource
from khomas.scheduler.config import BackendSettings, SchedulerSettings
from khomas.scheduler.placement.credentials import Lack, Wallet
from khomas.scheduler.placement.matching import Offer
from khomas.scheduler.placement.standing import Record, Reputation, Standing
from khomas.scheduler.ranking import Ranking, load_ranking
from khomas.scheduler.ranking.weighted import weighted
from khomas.scheduler.signals import Signal
from khomas.scheduler.storable import storable

log = logging.getLogger(__name__)

PLUGINS = "khomas.scheduler.backends"
_LOCAL = BackendSettings(kind="local")
Operation = JobCommand.Operation

# Notes what is said to a backend meanwhile.
Watch = Callable[[str, Operation.ValueType], AbstractContextManager[None]]


def unwatched(_backend: str, _operation: Operation.ValueType) -> AbstractContextManager[None]:
    """Note nothing."""
    return nullcontext()


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
    # What was decided about it, and what was written down of how it did; read again and again.
    standing: Standing = field(default_factory=lambda: Standing(""))
    record: Record = field(default_factory=Record)
    # What this process has seen.
    reputation: Reputation = field(default_factory=Reputation)

    @property
    def shut(self) -> bool:
        """Whether those who run it closed all its queues."""
        return bool(self.resources) and all(queue.closed for queue in self.resources)

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
            self.settings.priority,
            self.settings.platforms,
            self.record.expected_wait,
            self.record.good,
            self.record.sample,
            self.standing.said,
            self.standing.automatic,
            self.backend.capabilities.wall_margin,
            frozenset(self.settings.queues),
            self.backend.capabilities.avoids_nodes,
            self.backend.capabilities.live_usage,
        )

    async def look(self, deadline: float, watch: Watch = unwatched) -> None:
        """Ask for its resources; an error marks it as not answering."""
        try:
            with watch(self.name, Operation.OPERATION_RESOURCES):
                async with asyncio.timeout(deadline):
                    self.resources = await self.backend.list_resources()
            self.trouble = ""
        except Exception as error:
            log.warning("backend.unreachable", exc_info=True, extra={"backend": self.name})
            self.trouble = storable(f"{type(error).__name__}: {error}")
        self.observe_time = datetime.now(UTC)

    async def words_for(self, native_id: str, deadline: float) -> str:
        """What it says of a job now, in its own words; nothing when it does not answer."""
        try:
            async with asyncio.timeout(deadline):
                [seen] = (await self.backend.poll([native_id])).observations
        except Exception:
            log.warning("backend.unreachable", exc_info=True, extra={"backend": self.name})
            return ""
        return received.observation(seen).native_state


class Sites:
    """All configured backends by name."""

    def __init__(self, sites: Iterable[Site], wallet: Wallet | None = None, ranking: Ranking = weighted) -> None:
        self._sites = {site.name: site for site in sites}
        self.ranking = ranking
        self.wallet = wallet or Wallet(Credentials({}))
        # Held while decisions are made or read, so that no older one is put in the place of a newer one.
        self.deciding = asyncio.Lock()

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

    @property
    def by_credential(self) -> Mapping[str, Sequence[str]]:
        """Backends that need each credential."""
        found: dict[str, list[str]] = {}
        for name, site in sorted(self._sites.items()):
            found.setdefault(site.settings.credential, []).append(name)
        return found

    def lack(self, name: str, span: timedelta | None = None) -> Lack | None:
        """What is wrong with the credential of a backend: now, or for a job that runs so long."""
        credential = self._sites[name].settings.credential if name in self._sites else ""
        return self.wallet.lack(credential, span) if credential else None

    async def look(self, deadline: float, watch: Watch = unwatched) -> None:
        """Ask those backends for their resources that we can show what they want to see."""
        await self.wallet.credentials.refresh()
        lacking = {name for name in self._sites if self.lack(name) is not None}
        for name in lacking:
            self._sites[name].trouble = ""  # what is wrong is the credential, and that is told
        await asyncio.gather(*[site.look(deadline, watch) for site in self if site.name not in lacking])

    async def close(self) -> None:
        """Let go of all connections; jobs go on."""
        for site in self._sites.values():
            await site.backend.aclose()


def open_sites(settings: SchedulerSettings, state: Path) -> Sites:
    """Open the configured backends, or this machine when there are none."""
    configured = settings.backends or {"local": _LOCAL}
    credentials = Credentials(open_all(settings.credentials))
    wallet = Wallet(credentials, settings.keeper, settings.credential_margin)
    sites = [Site(name, one, _open(name, one, state, credentials)) for name, one in configured.items()]
    return Sites(sites, wallet, load_ranking(settings.ranking))


def _open(name: str, settings: BackendSettings, state: Path, credentials: Credentials) -> Backend:
    point = plugins.installed(PLUGINS)[settings.kind]
    plugin: BackendPlugin[object] = plugins.load(point)
    options = dict(settings.options)
    if settings.kind == "local":
        options.setdefault("spool", state / "backends" / name)
    if settings.credential:
        credential = credential_of(name, settings, credentials)
        _check_used(name, plugin, options, credential)
        options |= shown(plugin, options, credential)
    return plugin.open(plugin.settings(**with_paths(plugin, options)))


def with_paths(plugin: BackendPlugin[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a plug-in takes them: a configuration has texts where it wants paths."""
    hints = get_type_hints(plugin.settings)
    paths = {name for name in options if Path in (hints.get(name), *get_args(hints.get(name)))}
    return {name: Path(value) if name in paths and value is not None else value for name, value in options.items()}


def credential_of(backend: str, settings: BackendSettings, credentials: Credentials) -> CredentialProvider:
    """The credential that a backend names. Raises `ConfigError`."""
    if settings.credential in credentials:
        return credentials[settings.credential]
    close = ", ".join(nearest(settings.credential, [one.name for one in credentials])) or "none is configured"
    raise ConfigError(f"backends.{backend}.credential: there is no credential {settings.credential}, only {close}")


def shown(plugin: BackendPlugin[Any], options: Mapping[str, Any], credential: CredentialProvider) -> dict[str, Any]:
    """Options that tell a plug-in where its credential is; what an operator set by hand stays."""
    files = credential.files()
    told: dict[str, Any] = {
        setting: files[file]
        for file, setting in plugin.credential_options.items()
        if file in files and setting not in options
    }
    if plugin.credential_environment and (environment := credential.environment()):
        told[plugin.credential_environment] = {**environment, **options.get(plugin.credential_environment, {})}
    return told


def _check_used(
    backend: str, plugin: BackendPlugin[object], options: Mapping[str, Any], credential: CredentialProvider
) -> None:
    by_hand = any(setting in options for setting in plugin.credential_options.values())
    if not by_hand and not shown(plugin, options, credential):
        raise ConfigError(
            f"backends.{backend}.credential: a backend of kind {plugin.name} has no use for one of kind "
            f"{credential.kind}; leave it out."
        )
