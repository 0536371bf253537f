"""The loop that prepares releases: check everything, write the copies, then switch in one transaction.

Every step can be repeated: a copy that is in the catalogue already is not made again, and nothing of a release
is visible as such before the last step.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from sqlalchemy import select, update

from khomas.api.archive.v1 import release_pb2 as pb
from khomas.api.catalog.v1 import file_pb2
from khomas.archive import names
from khomas.archive.fits_cards import write_copy
from khomas.archive.mapping import rules
from khomas.archive.offers import Checked, Offer, collisions, offers, snapshot_digest
from khomas.archive.provenance import Provenance, cards
from khomas.archive.reading import Reader
from khomas.archive.releases import State, changed
from khomas.archive.rows import product_row, record_row, release_message
from khomas.archive.tables import product, record, release
from khomas.archive.upstream import NewFile, Unreadable, Upstream, is_passing
from khomas.kit.database import AnyRow, Database, insert_many
from khomas.kit.events import EventLog
from khomas.kit.leases import FREE, claim, renew

log = logging.getLogger(__name__)

_MAX_PROBLEMS: Final = 1000
_MAX_PAUSE: Final = timedelta(minutes=10)


class LeaseLost(Exception):
    """Another process prepares this release now."""


class Refused(Exception):
    """The release cannot be made."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0])
        self.problems = list(problems[:_MAX_PROBLEMS])
        if len(problems) > _MAX_PROBLEMS:
            self.problems.append(f"{len(problems) - _MAX_PROBLEMS} more problems")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a release is going to have: its files and records."""

    checked: Sequence[Checked]
    # The files that are offered, by LFN.
    files: Mapping[str, file_pb2.File]


class Preparing:
    """Prepares one release after the other."""

    def __init__(
        self,
        database: Database,
        log: EventLog,
        upstream: Upstream,
        reader: Reader,
        provenance: Provenance,
        *,
        vo: str,
        owner: str,
        lease: timedelta,
        pause: timedelta,
    ) -> None:
        self._database = database
        self._log = log
        self._upstream = upstream
        self._reader = reader
        self._provenance = provenance
        self._vo = vo
        self._owner = owner
        self._lease = lease
        self._pause = pause

    async def work(self) -> None:
        """Prepare what there is to prepare."""
        while (row := await self._claimed()) is not None:
            try:
                await self._prepare(row)
            except LeaseLost:
                log.warning("release.lease_lost", extra={"release": row.name})

    async def _claimed(self) -> AnyRow | None:
        now = datetime.now(UTC)
        due = (
            select(release.c.uid)
            .where(release.c.state == State.STATE_PREPARING, release.c.next_attempt_time <= now)
            .order_by(release.c.next_attempt_time)
            .limit(1)
        )
        async with self._database.write() as connection:
            rows = await claim(connection, release, due, owner=self._owner, now=now, until=now + self._lease)
        return rows[0] if rows else None

    async def _prepare(self, row: AnyRow) -> None:
        message = release_message(row)
        try:
            snapshot = await self._made(row, message)
        except Refused as refused:
            await self._fail(row, refused.problems)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001  any other is told, and must not hold up other releases
            if isinstance(error, grpc.aio.AioRpcError) and not is_passing(error):
                await self._fail(row, [error.details() or error.code().name])
                return
            await self._postpone(row, error)
        else:
            await self._finish(row, snapshot)

    async def _made(self, row: AnyRow, message: pb.Release) -> Snapshot:
        files = await self._upstream.members(row.dataset, row.create_time)
        if not files:
            raise Refused([f"{row.dataset} had no files at the creation of the release"])
        if gone := [f"{file.name}: was deleted" for file in files if file.state != file_pb2.File.STATE_ACTIVE]:
            raise Refused(gone)
        dataset = await self._upstream.dataset(names.dataset(row.name))
        if dataset is not None and dataset.origin != row.uid:
            raise Refused([f"{dataset.name}: there is another dataset of this name"])
        made = offers(message, rules(message.mapping), files, self._vo)
        if found := collisions(made):
            raise Refused(found)
        checked = await self._checked(row, message, made)
        copies = await self._copied(row, message, checked)
        offered = {offer.file: copies[offer.file] if offer.copied else offer.source for offer in made}
        members = [*offered, *([await self._terms(row)] if row.terms else [])]
        await self._upstream.close_dataset(names.dataset(row.name), row.title, members, row.uid, row.owner)
        return Snapshot(checked, offered)

    async def _checked(self, row: AnyRow, message: pb.Release, made: Sequence[Offer]) -> list[Checked]:
        results: list[Checked] = []
        for batch in self._reader.batches(made):
            await self._renew(row)
            results += await self._reader.check(message, batch)
        if problems := [problem for one in results for problem in one.problems]:
            raise Refused(problems)
        return results

    async def _copied(
        self, row: AnyRow, message: pb.Release, all_checked: Sequence[Checked]
    ) -> dict[str, file_pb2.File]:
        """Make the copies that are not there yet; return all of them by LFN."""
        wanted = {one.offer.file: one for one in all_checked if one.offer.copied}
        there = await self._upstream.files(list(wanted))
        if taken := [f"{name}: another file has this name" for name, file in there.items() if file.origin != row.uid]:
            raise Refused(taken)
        missing = [one for name, one in wanted.items() if name not in there]
        for batch in self._reader.batches(missing):
            await self._renew(row)
            await self._copy(row, message, batch)
        return there | await self._upstream.files([one.offer.file for one in missing])

    async def _copy(self, row: AnyRow, message: pb.Release, batch: Sequence[Checked]) -> None:
        made_by = await self._provenance.of(one.offer.source.origin for one in batch)
        async with self._upstream.workspace() as folder:
            sources = await self._upstream.fetch([one.offer.source for one in batch], folder)
            terms = names.terms(self._vo, message.name) if message.terms else ""

            async def copied(one: Checked) -> NewFile:
                offer = one.offer
                source, target = sources[offer.source.name], folder / names.file_name(offer.file)
                if isinstance(source, Unreadable):
                    raise Refused([f"{offer.source.name}: {source}"])
                card_values = cards(message, offer, made_by.get(offer.source.origin, {}), terms)
                await self._upstream.in_thread(write_copy, source, target, card_values)
                return NewFile(offer.file, target, [offer.source.name], offer.source.metadata, one.content_digest)

            await self._upstream.put(await asyncio.gather(*map(copied, batch)), row.uid, row.owner)

    async def _terms(self, row: AnyRow) -> str:
        """Bring the terms of use in, unless they are there; return their LFN."""
        name = names.terms(self._vo, row.name)
        if not await self._upstream.files([name]):
            async with self._upstream.workspace() as folder:
                path = folder / "terms"
                await self._upstream.in_thread(path.write_text, row.terms)
                await self._upstream.put([NewFile(name, path)], row.uid, row.owner)
        return name

    async def _renew(self, row: AnyRow) -> None:
        until = datetime.now(UTC) + self._lease
        async with self._database.write() as connection:
            if not await renew(connection, release, {row.uid: row.lease_epoch}, until=until):
                raise LeaseLost

    async def _fail(self, row: AnyRow, problems: Sequence[str]) -> None:
        await self._switch(row, {"state": State.STATE_FAILED, "problems": problems, "message": ""})

    async def _finish(self, row: AnyRow, snapshot: Snapshot) -> None:
        records = [record_row(row.uid, one.record) for one in snapshot.checked if one.record is not None]
        products = [_product(row.uid, one, snapshot.files[one.offer.file]) for one in snapshot.checked]
        values = {
            "state": State.STATE_READY,
            "message": "",
            "record_count": len(records),
            "content_digest": await asyncio.to_thread(snapshot_digest, snapshot.checked),
        }
        await self._switch(row, values, products, records)

    async def _switch(
        self,
        row: AnyRow,
        values: Mapping[str, Any],
        products: Sequence[Mapping[str, Any]] = (),
        records: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        async with self._database.write() as connection:
            statement = update(release).where(release.c.uid == row.uid, release.c.lease_epoch == row.lease_epoch)
            new = {"state_time": datetime.now(UTC), "version": release.c.version + 1, **FREE, **values}
            if not (await connection.execute(statement.values(new))).rowcount:
                raise LeaseLost
            await insert_many(connection, product, products)
            await insert_many(connection, record, records)
            await changed(connection, self._log, row.uid)

    async def _postpone(self, row: AnyRow, error: Exception) -> None:
        log.warning("release.postponed", exc_info=error, extra={"release": row.name})
        # Every try has its lease, so the epoch counts them.
        pause = min(self._pause * 2 ** min(row.lease_epoch - 1, 20), _MAX_PAUSE)
        values = {"message": _said(error), "next_attempt_time": datetime.now(UTC) + pause, **FREE}
        async with self._database.write() as connection:
            statement = update(release).where(release.c.uid == row.uid, release.c.lease_epoch == row.lease_epoch)
            await connection.execute(statement.values(values))


def _product(uid: str, one: Checked, file: file_pb2.File) -> dict[str, Any]:
    return product_row(uid, one, file.size_bytes, file.checksums.adler32)


def _said(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"another service does not answer: {error.details()}"
    if is_passing(error):
        return f"files cannot be read or written now: {error}"
    return "an error of ours; the archive's log has it"
