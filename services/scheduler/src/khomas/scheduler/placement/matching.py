"""Which backend a job goes to, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.filtering.fields import nearest
from khomas.scheduler.backends.interface import ComputeResource
from khomas.scheduler.errors import BackendUnknown, NativeOptionUnknown, NoMatch
from khomas.scheduler.lifecycle.bounds import grown_bytes, grown_span
from khomas.scheduler.ranking import Facts, Rank, Ranking
from khomas.scheduler.ranking.weighted import weighted

# Of a job that does not say how long it runs.
USUAL_LENGTH = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Offer:
    """A backend as it is known now."""

    name: str
    kind: str
    site: str
    resources: Sequence[ComputeResource] = ()
    # Jobs of ours that it has, and how many it may have.
    jobs: int = 0
    max_jobs: int = 1000
    # Empty when it can be used.
    trouble: str = ""
    # Names of the options in its own words that a job may give.
    native_options: frozenset[str] = frozenset()
    priority: float = 1.0
    # Of all its queues, beside what they declare.
    platforms: Sequence[str] = ()
    # As measured; None = not known.
    expected_wait: timedelta | None = None
    # Recent jobs that it brought to their end, of how many.
    successes: int = 0
    sample: int = 0
    # Why it gets no new jobs; empty when it does.
    closed: str = ""
    # Test jobs go there all the same.
    probed: bool = False
    # What it asks of its system beyond the wall time of a job.
    wall_margin: timedelta = timedelta(0)
    # Queues that may be chosen for jobs that name none; empty = all.
    queues: frozenset[str] = frozenset()
    # It can keep jobs off nodes.
    avoids_nodes: bool = False
    # It tells what running jobs have used so far.
    live_usage: bool = False

    @property
    def room(self) -> int:
        """How many more jobs it takes."""
        if self.trouble or (self.closed and not self.probed):
            return 0
        free = max(0, self.max_jobs - self.jobs)
        return min(1, free) if self.closed else free


@dataclass(frozen=True, slots=True)
class Needs:
    """What counts when a place is chosen."""

    cpu_milli: int
    memory_bytes: int
    wall_time: timedelta
    # Share of its input bytes by site; None = it has none, or nobody knows.
    local: Mapping[str, float] | None = None
    # A test job: it may go where others may not.
    probe: bool = False
    # Backends where it failed, which are the last choice.
    avoid: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        memory_factor: float = 1.0,
        wall_factor: float = 1.0,
        local: Mapping[str, float] | None = None,
        probe: bool = False,
        avoid: frozenset[str] = frozenset(),
    ) -> "Needs":
        """What a spec asks for, grown after failures."""
        wanted = spec.resources
        return cls(
            wanted.cpu_milli or 1000,
            grown_bytes(wanted.memory_bytes, memory_factor),
            grown_span(wanted.wall_time, wall_factor),
            local,
            probe,
            avoid,
        )

    @property
    def length(self) -> timedelta:
        """How long it runs, as far as is known."""
        return self.wall_time or USUAL_LENGTH


@dataclass(frozen=True, slots=True)
class Match:
    """The backends that fit, the best first, and why the others do not."""

    fitting: Sequence[Offer]
    # Never, as things are.
    excluded: Mapping[str, str]
    why: str = ""
    # Those that would fit but get no new jobs now.
    closed: Mapping[str, str] = field(default_factory=dict)
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    # The queue at each that fits; empty = the system's own choice.
    queues: Mapping[str, str] = field(default_factory=dict)

    @property
    def others(self) -> list[str]:
        """A line for each that was not chosen."""
        lines = [f"{name} excluded: {why}" for name, why in (*self.excluded.items(), *self.closed.items())]
        return lines + [
            f"{offer.name} rank {self.ranks[offer.name].value:.3g} ({_load(offer)})" for offer in self.fitting[1:]
        ]


def check_placement(spec: JobSpec, offers: Sequence[Offer]) -> Match:
    """Refuse what can never be: unknown backends and options, needs that fit nowhere; tell where it fits."""
    names = [offer.name for offer in offers]
    for name in (*spec.placement.backends, *spec.placement.exclude):
        if name not in names:
            raise BackendUnknown(backend=name, nearest=", ".join(nearest(name, names)))
    known = {offer.kind: offer.native_options for offer in offers}
    for kind, options in spec.placement.native.items():
        unknown = sorted(options.fields.keys() - known.get(kind, frozenset()))
        if kind not in known or unknown:
            option = next(iter(unknown), "")
            close = ", ".join(nearest(option, sorted(known.get(kind, ())))) or "none"
            raise NativeOptionUnknown(backend=kind, option=option, nearest=close)
    found = match(spec, Needs.of(spec), offers)
    if not found.fitting and not found.closed:
        raise NoMatch(
            needed="; ".join(f"{name}: {why}" for name, why in found.excluded.items()) or "none is configured"
        )
    return found


def match(spec: JobSpec, needs: Needs, offers: Sequence[Offer], ranking: Ranking = weighted) -> Match:
    """Rank the backends that fit: those with room first, then by rank and by how crowded they are."""
    excluded = {offer.name: why for offer in offers if (why := _excluded(spec, needs, offer))}
    fitting = [offer for offer in offers if offer.name not in excluded]
    closed = {offer.name: why for offer in fitting if (why := _closed(spec, needs, offer))}
    open_ones = [offer for offer in fitting if offer.name not in closed]
    if any(offer.name not in needs.avoid and not offer.trouble for offer in open_ones):
        excluded |= {offer.name: "it failed there" for offer in open_ones if offer.name in needs.avoid}
        open_ones = [offer for offer in open_ones if offer.name not in needs.avoid]
    chosen = {offer.name: _chosen(spec, needs, offer) for offer in open_ones}
    found = ranking([_facts(needs, offer, chosen[offer.name]) for offer in open_ones], needs.length)
    ranks = {offer.name: rank for offer, rank in zip(open_ones, found, strict=True)}
    open_ones.sort(key=lambda offer: standing_in_line(offer, ranks[offer.name].value))
    queues = {name: spec.placement.queue or ("" if one.is_default else one.queue) for name, one in chosen.items()}
    return Match(open_ones, excluded, _why(open_ones, ranks, queues), closed, ranks, queues)


def standing_in_line(offer: Offer, rank: float, jobs: int | None = None) -> tuple[bool, float, float, str]:
    """What backends are sorted by, the best first, when one has so many jobs of ours.

    A rank counts less the more of our jobs there are for its cores, so that equal places fill evenly.
    """
    jobs = offer.jobs if jobs is None else jobs
    full = offer.room - (jobs - offer.jobs) <= 0
    return full, -rank / (1 + jobs / _capacity(offer)), jobs / offer.max_jobs, offer.name


def _facts(needs: Needs, offer: Offer, queue: ComputeResource) -> Facts:
    return Facts(
        offer.name,
        offer.priority,
        offer.expected_wait if queue.expected_wait is None else queue.expected_wait,
        offer.successes,
        offer.sample,
        needs.local.get(offer.site, 0.0) if needs.local else None,
    )


def _why(fitting: Sequence[Offer], ranks: Mapping[str, Rank], queues: Mapping[str, str]) -> str:
    if not fitting:
        return ""
    best = fitting[0]
    queue = f", queue {queues[best.name]}" if queues[best.name] else ""
    others = f"best of {len(fitting)} that fit" if len(fitting) > 1 else "it is the only one that fits"
    rank = ranks[best.name]
    return f"{best.name}{queue}: rank {rank.value:.3g} = {rank.why}; it has {_load(best)}; {others}"


def _load(offer: Offer) -> str:
    said = f"{offer.jobs} of at most {offer.max_jobs} jobs"
    free = _sum([one.free_cpu_milli for one in offer.resources if not one.closed])
    queued = _sum([one.queued_jobs for one in offer.resources if not one.closed])
    said += f", {free / 1000:g} free cores" if free is not None else ""
    said += f", {queued} queued" if queued is not None else ""
    return f"{said}, and does not answer" if offer.trouble else said


def _capacity(offer: Offer) -> float:
    """About how many jobs run there at a time."""
    cores = _sum([one.cpu_milli for one in offer.resources if not one.closed])
    return max(1.0, min(offer.max_jobs, (cores or offer.max_jobs * 1000) / 1000))


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _excluded(spec: JobSpec, needs: Needs, offer: Offer) -> str:
    """Why a backend is out of the question; empty when it is not."""
    return _elsewhere(spec, needs, offer) or _no_queue(spec, needs, offer)


def _elsewhere(spec: JobSpec, needs: Needs, offer: Offer) -> str:
    """Why the job is not to go there, whatever it needs."""
    where = spec.placement
    if where.backends and offer.name not in where.backends:
        return f"only {', '.join(where.backends)} asked for"
    if offer.name in where.exclude:
        return "excluded by the job"
    if where.sites and offer.site not in where.sites:
        return f"its site is {offer.site}, wanted {', '.join(where.sites)}"
    if where.require_data_local and needs.local is not None and needs.local.get(offer.site, 0.0) < 1:
        return f"only {needs.local.get(offer.site, 0.0):.0%} of the input is at its site {offer.site}"
    return ""


def _no_queue(spec: JobSpec, needs: Needs, offer: Offer) -> str:
    """Why it fits no queue there."""
    queues = _queues(spec, offer)
    if not queues and spec.placement.queue and offer.resources:
        return f"it has no queue {spec.placement.queue!r}"
    if not queues:
        return _no_platform(spec, offer.platforms)
    return min((_too_big(spec, needs, offer, queue) for queue in queues), key=len)


def _queues(spec: JobSpec, offer: Offer) -> list[ComputeResource]:
    """The queues that it may be given to."""
    if spec.placement.queue:
        return [one for one in offer.resources if one.queue == spec.placement.queue]
    return [one for one in offer.resources if not offer.queues or one.is_default or one.queue in offer.queues]


def _fitting(spec: JobSpec, needs: Needs, offer: Offer) -> list[ComputeResource]:
    return [one for one in _queues(spec, offer) if not _too_big(spec, needs, offer, one)]


def _closed(spec: JobSpec, needs: Needs, offer: Offer) -> str:
    """Why it gets no new jobs, or none of the queues that the job fits does; empty when it is open."""
    if offer.closed:
        return "" if needs.probe and offer.probed else offer.closed
    fitting = _fitting(spec, needs, offer)
    if not fitting or not all(one.closed for one in fitting):
        return ""
    names = ", ".join(f"{one.queue} ({one.message})" if one.message else one.queue for one in fitting)
    return f"closed by those who run it: queue {names}"


def _chosen(spec: JobSpec, needs: Needs, offer: Offer) -> ComputeResource:
    """The best open queue that the job fits; the system's own choice where that is one of them."""
    fitting = [one for one in _fitting(spec, needs, offer) if not one.closed]
    if not fitting:
        return ComputeResource("", is_default=True)  # it tells of no queues
    best = min(fitting, key=_in_line)
    return replace(best, is_default=True) if len({one.queue for one in offer.resources}) == 1 else best


def _in_line(queue: ComputeResource) -> tuple[bool, timedelta, int, int, str]:
    """What the queues of a backend are sorted by, the best first."""
    wait = timedelta.max if queue.expected_wait is None else queue.expected_wait
    return not queue.is_default, wait, -(queue.free_cpu_milli or 0), queue.queued_jobs or 0, queue.queue


def _too_big(spec: JobSpec, needs: Needs, offer: Offer, queue: ComputeResource) -> str:
    most, margin = queue.max_cpu_milli or queue.cpu_milli, offer.wall_margin
    if most is not None and needs.cpu_milli > most:
        return f"{needs.cpu_milli / 1000:g} cores wanted, it has {most / 1000:g}"
    if queue.max_memory_bytes is not None and needs.memory_bytes > queue.max_memory_bytes:
        return f"{needs.memory_bytes} bytes of memory wanted, it has {queue.max_memory_bytes}"
    if queue.max_wall_time is not None and needs.wall_time and needs.wall_time + margin > queue.max_wall_time:
        beside = f" and {margin} beside it" if margin else ""
        return f"{needs.wall_time} of wall time wanted{beside}, at most {queue.max_wall_time}"
    return _no_platform(spec, (*offer.platforms, *queue.platforms))


def _no_platform(spec: JobSpec, declared: Sequence[str]) -> str:
    wanted = spec.environment.platform
    if not wanted or wanted in declared:
        return ""
    return f"platform {wanted} wanted, it declares {', '.join(dict.fromkeys(declared)) or 'none'}"
