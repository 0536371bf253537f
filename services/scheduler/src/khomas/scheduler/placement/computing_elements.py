"""The table of computing elements: backends and their queues as they are now, with rank and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from khomas.api.scheduler.v1.placement_pb2 import Backend, Closure
from khomas.api.scheduler.v1.placement_pb2 import ComputeResource as Row
from khomas.scheduler.backends.interface import ComputeResource
from khomas.scheduler.placement.matching import USUAL_LENGTH
from khomas.scheduler.placement.sites import Site, Sites
from khomas.scheduler.placement.standing import Status
from khomas.scheduler.ranking import Facts, Rank
from khomas.scheduler.ranking.weighted import success_rate

# Running and waiting, by backend and queue.
Ours = Mapping[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Place:
    site: Site
    queue: ComputeResource

    @property
    def status(self) -> "Backend.Status.ValueType":
        return Backend.STATUS_CLOSED if self.queue.closed else status_of(self.site)

    @property
    def wait(self) -> timedelta | None:
        return self.queue.expected_wait or self.site.record.expected_wait


def backend_messages(sites: Sites, ours: Ours) -> list[Backend]:
    """All backends by name, their queues from the best to the worst."""
    by_name = sorted(sites, key=lambda site: site.name)
    places = [_Place(site, queue) for site in by_name for queue in site.resources or [ComputeResource("")]]
    ranks = sites.ranking([_facts(place) for place in places], USUAL_LENGTH)
    rows: dict[str, list[Row]] = {}
    for place, rank in zip(places, ranks, strict=True):
        rows.setdefault(place.site.name, []).append(_row(place, rank))
    return [_backend(site, rows[site.name], ours) for site in by_name]


def status_of(site: Site) -> "Backend.Status.ValueType":
    """Whether it takes jobs."""
    if site.standing.status == Status.BANNED:
        return Backend.STATUS_BANNED
    if site.standing.status == Status.DRAINING:
        return Backend.STATUS_DRAINING
    if site.trouble:
        return Backend.STATUS_UNREACHABLE
    return Backend.STATUS_CLOSED if site.shut else Backend.STATUS_PRODUCTION


def _facts(place: _Place) -> Facts:
    site = place.site
    return Facts(
        site.name,
        site.settings.priority,
        place.wait,
        site.record.good,
        site.record.sample,
        in_use=place.status == Backend.STATUS_PRODUCTION,
    )


def _row(place: _Place, rank: Rank) -> Row:
    site, queue = place.site, place.queue
    return Row(
        backend=f"backends/{site.name}",
        queue=queue.queue,
        site=site.settings.site,
        status=place.status,
        response_time=_duration(place.wait),
        cpus=_cores(queue.cpu_milli),
        free_cpus=_cores(queue.free_cpu_milli),
        running_jobs=queue.running_jobs,
        queued_jobs=queue.queued_jobs,
        max_wall_time=_duration(queue.max_wall_time),
        max_memory_bytes=queue.max_memory_bytes,
        max_cpus=_cores(queue.max_cpu_milli),
        platforms=dict.fromkeys((*site.settings.platforms, *queue.platforms)),
        power_per_core_hs23=queue.power_per_core_hs23,
        success_rate=success_rate(site.record.good, site.record.sample),
        success_sample=site.record.sample,
        rank=rank.value,
        rank_why=rank.why,
        in_use=place.status == Backend.STATUS_PRODUCTION,
        observe_time=site.observe_time,  # type: ignore[arg-type]  # protobuf takes datetimes
    )


def _backend(site: Site, rows: list[Row], ours: Ours) -> Backend:
    mine = {queue: numbers for (backend, queue), numbers in ours.items() if backend == site.name}
    _count_ours(rows, mine)
    rows.sort(key=lambda row: (-row.rank, row.queue))
    known = site.resources
    cpus, free = _sum([one.cpu_milli for one in known]), _sum([one.free_cpu_milli for one in known])
    said = [site.standing.said, site.trouble, *(one.message for one in known)]
    written = Backend(
        name=f"backends/{site.name}",
        kind=site.backend.capabilities.kind,
        site=site.settings.site,
        status=status_of(site),
        message="; ".join(part for part in said if part),
        cpus=-1 if cpus is None else cpus // 1000,
        free_cpus=-1 if free is None else free // 1000,
        running_jobs=sum(running for running, _ in mine.values()),
        queued_jobs=sum(queued for _, queued in mine.values()),
        max_memory_bytes=max((one.max_memory_bytes or 0 for one in known), default=0),
        observe_time=site.observe_time,  # type: ignore[arg-type]  # protobuf takes datetimes
        resources=rows,
        rank=rows[0].rank,
        rank_why=rows[0].rank_why,
        response_time=_duration(site.record.expected_wait),
        success_rate=rows[0].success_rate,
        success_sample=rows[0].success_sample,
        closure=_closure(site),
    )
    walls = [one.max_wall_time for one in known]
    if walls and None not in walls:
        written.max_wall_time.FromTimedelta(max(wall for wall in walls if wall is not None))
    return written


def _count_ours(rows: Sequence[Row], mine: Mapping[str, tuple[int, int]]) -> None:
    """Our jobs by queue; those of a queue that is not told count where the backend's first one is."""
    by_queue = {row.queue: row for row in rows}
    for queue, (running, queued) in mine.items():
        row = by_queue.get(queue, rows[0])
        row.our_running_jobs += running
        row.our_queued_jobs += queued


def _closure(site: Site) -> Closure | None:
    standing = site.standing
    if standing.status == Status.PRODUCTION:
        return None
    closure = Closure(reason=standing.reason, actor=standing.actor)
    if standing.since is not None:
        closure.start_time.FromDatetime(standing.since)
    if standing.until is not None:
        closure.end_time.FromDatetime(standing.until)
    return closure


def _cores(milli: int | None) -> int | None:
    return None if milli is None else milli // 1000


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _duration(value: timedelta | None) -> Duration | None:
    if value is None:
        return None
    duration = Duration()
    duration.FromTimedelta(value)
    return duration
