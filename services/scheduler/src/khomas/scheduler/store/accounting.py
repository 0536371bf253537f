"""What accounts have and have used."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import case, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.share_pb2 import Share
from khomas.kit.auth.principal import Principal
from khomas.kit.filtering.fields import nearest
from khomas.scheduler import tables
from khomas.scheduler.errors import QuotaExceeded, ShareUnknown
from khomas.scheduler.placement.shares import ROOT, Load, Tree, decayed
from khomas.scheduler.records import Attempt, Job

if TYPE_CHECKING:
    from khomas.scheduler.intake.drafts import Draft

_job, _attempt, _use = tables.job.c, tables.attempt.c, tables.share_use.c
_HOUR = 3600
_HALF_LIVES = 10
# Who looks for room in queues and takes it at the same moment must see each other.
_LOCK = 7262
# Of a Duration.
_MOST_SECONDS = 315_576_000_000


def charges(ended: Iterable[tuple[Job, Attempt]]) -> list[dict[str, object]]:
    """Rows to add for attempts that ended: CPU time by account, in the hour of its end."""
    sums: dict[tuple[str, int], int] = {}
    for job, attempt in ended:
        cpu = attempt.usage.get("cpu_user_s", 0.0) + attempt.usage.get("cpu_system_s", 0.0)
        if job.share and cpu and attempt.end_time:
            key = (job.share, int(attempt.end_time.timestamp()) // _HOUR)
            sums[key] = sums.get(key, 0) + round(cpu * 1000)
    return [{"share": share, "hour": hour, "cpu_ms": cpu} for (share, hour), cpu in sorted(sums.items())]


@dataclass(frozen=True, slots=True)
class Accounting:
    """Reads loads, and charges jobs to accounts."""

    tree: Tree
    half_life: timedelta

    def charged(self, drafts: "Sequence[Draft]", principal: Principal) -> "list[Draft]":
        """Charge drafts to their accounts. Raises `ShareUnknown`."""
        return [self._charged(draft, principal) for draft in drafts] if self.tree else list(drafts)

    async def check(self, connection: AsyncConnection, drafts: "Sequence[Draft]") -> None:
        """Raise `QuotaExceeded` where drafts are more than may wait; the room is theirs until the transaction ends."""
        if all(account.max_queued is None for account in self.tree.accounts.values()):
            return
        # SQLite has one writer anyway.
        if connection.dialect.name == "postgresql":
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        adding: dict[str, int] = {}
        for draft in drafts:
            adding[draft.job.share] = adding.get(draft.job.share, 0) + (draft.job.total or 1)
        sums = self.tree.rolled_up({share: Load(queued=n) for share, n in (await _queued(connection)).items()})
        self._check_queues(adding, sums)

    def _charged(self, draft: "Draft", principal: Principal) -> "Draft":
        share = draft.job.share or self.tree.default
        account = self.tree.accounts.get(share)
        mine = [path for path in self.tree.leaves if self._admits(path, principal)]
        if account is None or share not in mine:
            close = nearest(share, mine) or mine
            raise ShareUnknown(share=share, nearest=", ".join(close) or "none")
        return replace(draft, job=draft.job._replace(share=share))

    def _admits(self, path: str, principal: Principal) -> bool:
        who = {principal.subject, *principal.groups}
        members = [self.tree.accounts[part].members for part in self.tree.line(path)]
        return all(not some or who.intersection(some) for some in members)

    def _check_queues(self, adding: Mapping[str, int], sums: dict[str, Load]) -> None:
        for leaf, number in adding.items():
            if path := self.tree.queue_over(leaf, number, sums):
                most = self.tree.accounts[path].max_queued
                raise QuotaExceeded(share=path, queued=sums[path].queued, max_queued=most)
            for part in self.tree.line(leaf):
                sums[part] += Load(queued=number)

    async def loads(self, connection: AsyncConnection, *, queued: bool = False) -> dict[str, Load]:
        """What every account has by itself."""
        now = time.time()
        ages: dict[str, list[tuple[float, float]]] = {}
        since = int(now - max(_HALF_LIVES * self.half_life.total_seconds(), 24 * _HOUR)) // _HOUR
        for share, hour, cpu_ms in (await connection.execute(select(tables.share_use).where(_use.hour >= since))).all():
            ages.setdefault(share, []).append((max(0.0, now - hour * _HOUR), cpu_ms / 1000))
        running = await _running(connection)
        waiting = await _queued(connection) if queued else {}
        return {
            leaf: Load(
                waiting.get(leaf, 0),
                running.get(leaf, 0),
                decayed(ages.get(leaf, ()), self.half_life),
                sum(cpu for age, cpu in ages.get(leaf, ()) if age < 24 * _HOUR),
            )
            for leaf in self.tree.leaves
        }

    async def view(self, connection: AsyncConnection) -> list[Share]:
        """All accounts as in the contract, the root first."""
        if not self.tree:
            return []
        sums = self.tree.rolled_up(await self.loads(connection, queued=True))
        return [self._written(path, sums) for path in [ROOT, *self.tree.accounts]]

    def _written(self, path: str, sums: Mapping[str, Load]) -> Share:
        load, whole = sums[path], sums[ROOT].used_s
        share = Share(
            name=path,
            weight=1.0,
            queued_jobs=load.queued,
            running_jobs=load.running,
            cpu_used=_duration(load.used_s),
            cpu_used_last_day=_duration(load.last_day_s),
            entitled=self.tree.entitled(path),
            used=load.used_s / whole if whole else 0.0,
        )
        if path != ROOT:
            account = self.tree.accounts[path]
            share.weight, share.reserved = account.weight, account.reserved
            share.priority_class = self.tree.priority_class(path)
            share.max_queued_jobs, share.max_running_jobs = account.max_queued or 0, account.max_running or 0
            if account.max_cpu_per_day is not None:
                share.max_cpu_per_day.FromTimedelta(account.max_cpu_per_day)
        return share


async def _running(connection: AsyncConnection) -> dict[str, int]:
    query = select(_job.share, func.count()).join(tables.attempt, _attempt.job == _job.uid)
    rows = await connection.execute(query.where(_attempt.end_time.is_(None)).group_by(_job.share))
    return {row[0]: row[1] for row in rows.all()}


async def _queued(connection: AsyncConnection) -> dict[str, int]:
    """Jobs that nothing was handed over of; children of arrays that have no row count too."""
    number = func.sum(case((_job.total > 0, _job.total - _job.made), else_=1))
    rows = await connection.execute(select(_job.share, number).where(tables.PENDING).group_by(_job.share))
    return {share: int(number) for share, number in rows.all()}


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(min(seconds, _MOST_SECONDS) * 1e9))
    return duration
