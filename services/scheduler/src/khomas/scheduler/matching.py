"""Which backend a job goes to, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from khomas.api.scheduler.v1.job_spec_pb2 import JobSpec
from khomas.kit.filtering.fields import nearest
from khomas.scheduler.backends.interface import ComputeResource
from khomas.scheduler.errors import BackendUnknown, NativeOptionUnknown, NoMatch


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

    @property
    def room(self) -> int:
        """How many more jobs it takes."""
        return 0 if self.trouble else max(0, self.max_jobs - self.jobs)


@dataclass(frozen=True, slots=True)
class Needs:
    """What counts when a place is chosen."""

    cpu_milli: int
    memory_bytes: int
    wall_time: timedelta

    @classmethod
    def of(cls, spec: JobSpec, memory_factor: float = 1.0, wall_factor: float = 1.0) -> "Needs":
        """What a spec asks for, grown after failures."""
        wanted = spec.resources
        return cls(
            wanted.cpu_milli or 1000,
            int(wanted.memory_bytes * memory_factor),
            wanted.wall_time.ToTimedelta() * wall_factor,
        )


@dataclass(frozen=True, slots=True)
class Match:
    """The backends that fit, the best first, and why the others do not."""

    fitting: Sequence[Offer]
    excluded: Mapping[str, str]
    why: str = ""


def check_placement(spec: JobSpec, offers: Sequence[Offer]) -> None:
    """Refuse what can never be: unknown backends and options, needs that fit nowhere."""
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
    if not found.fitting:
        raise NoMatch(
            needed="; ".join(f"{name}: {why}" for name, why in found.excluded.items()) or "none is configured"
        )


def match(spec: JobSpec, needs: Needs, offers: Sequence[Offer]) -> Match:
    """Rank the backends that fit: room first, then free cores, then the order of their names."""
    excluded = {offer.name: why for offer in offers if (why := _excluded(spec, needs, offer))}
    fitting = sorted((offer for offer in offers if offer.name not in excluded), key=_rank)
    if not fitting:
        return Match((), excluded)
    best = fitting[0]
    free = _free_cores(best)
    said = f"it has {best.jobs} of at most {best.max_jobs} jobs"
    if free is not None:
        said += f" and {free:g} free cores"
    others = f"; best of {len(fitting)} that fit" if len(fitting) > 1 else "; it is the only one that fits"
    return Match(fitting, excluded, f"{best.name}: {said}{others}")


def _rank(offer: Offer) -> tuple[bool, float, str]:
    load = offer.jobs / offer.max_jobs
    free = _free_cores(offer)
    return offer.room == 0, load - (free or 0.0) / 1000, offer.name


def _free_cores(offer: Offer) -> float | None:
    known = [one.free_cpu_milli for one in offer.resources if one.free_cpu_milli is not None]
    return sum(known) / 1000 if known else None


def _excluded(spec: JobSpec, needs: Needs, offer: Offer) -> str:
    """Why a backend is out of the question; empty when it is not."""
    where = spec.placement
    if where.backends and offer.name not in where.backends:
        return f"only {', '.join(where.backends)} asked for"
    if offer.name in where.exclude:
        return "excluded by the job"
    if where.sites and offer.site not in where.sites:
        return f"its site is {offer.site}, wanted {', '.join(where.sites)}"
    queues = [one for one in offer.resources if not where.queue or one.queue == where.queue]
    if not queues:
        return f"it has no queue {where.queue!r}" if offer.resources else ""
    reasons = [_too_big(needs, queue) for queue in queues]
    return min(reasons, key=len)


def _too_big(needs: Needs, queue: ComputeResource) -> str:
    most = queue.max_cpu_milli or queue.cpu_milli
    if most is not None and needs.cpu_milli > most:
        return f"{needs.cpu_milli / 1000:g} cores wanted, it has {most / 1000:g}"
    if queue.max_memory_bytes is not None and needs.memory_bytes > queue.max_memory_bytes:
        return f"{needs.memory_bytes} bytes of memory wanted, it has {queue.max_memory_bytes}"
    if queue.max_wall_time is not None and needs.wall_time > queue.max_wall_time:
        return f"{needs.wall_time} of wall time wanted, at most {queue.max_wall_time}"
    return ""
