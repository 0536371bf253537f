"""The queue of transfers: taken in runs by lane, given back, measured."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.database import Database, count_statements, insert_many
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uid, new_uids
from khomas.storage.app import open_database
from khomas.storage.landing import Wanted
from khomas.storage.links.measures import Measures, Streams
from khomas.storage.links.waiting import RUN_FILES
from khomas.storage.tables import event, transfer, transfer_attempt
from khomas.storage.transfers.attempts import Attempt
from khomas.storage.transfers.queue import Outcome, Queue
from khomas.storage.transfers.retry import Policy
from khomas.storage.transfers.turns import deal, lane

POLICY = Policy(attempts=5, pause=timedelta(seconds=30), max_pause=timedelta(hours=1))
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A database with transfers in it."""

    database: Database

    @property
    def measures(self) -> Measures:
        return Measures(self.database, Streams(first=2, most=32))

    def queue(self, lease: timedelta = timedelta(minutes=1)) -> Queue:
        log = EventLog(self.database, event)
        return Queue(self.database, log, new_uid(), lease, POLICY, self.measures)

    async def add(self, count: int, source: str = "a", destination: str = "b", **values: Any) -> list[str]:
        now, uids = datetime.now(UTC), new_uids(count)
        rows: list[Row] = [
            {
                "uid": uid,
                "file": f"/hess/{uid}",
                "file_uid": uid,
                "destination": destination,
                "sources": "",
                "priority": 0,
                "max_attempts": 0,
                "origin": "",
                "owner": "tester",
                "share": "tester",
                "state": pb.Transfer.STATE_WAITING,
                "reason": pb.TRANSFER_REASON_QUEUED,
                "message": "",
                "size_bytes": 10,
                "attempt": 0,
                "path": "",
                "next_attempt_time": now,
                "create_time": now,
                "state_time": now,
                "lane": lane(source, destination),
                "turn": 0.0,
                "deadline": None,
            }
            | values
            for uid in uids
        ]
        async with self.database.write() as connection:
            await deal(connection, rows, {})
            await insert_many(connection, transfer, rows)
        return uids

    async def rows(self) -> dict[str, Any]:
        async with self.database.read() as connection:
            return {row.uid: row for row in (await connection.execute(select(transfer))).all()}


@pytest.fixture
async def waiting(database_url: str) -> AsyncIterator[Waiting]:
    database = open_database(database_url)
    await database.upgrade()
    yield Waiting(database)
    await database.close()


def ended(row: Any, **values: Any) -> Outcome:
    """Return how an attempt at a claimed row ended: well, unless said otherwise."""
    attempt = Attempt(row, datetime.now(UTC), 0.0, wanted=Wanted(10, "00000001"))
    attempt.copied = attempt.wanted
    source = row["lane"].partition(">")[0]
    return replace(attempt.end(), **({"source": source, "bytes": 10, "elapsed_seconds": 1.0} | values))


def uids(runs: Sequence[Sequence[Any]]) -> list[str]:
    return [row["uid"] for run in runs for row in run]


async def test_small_files_of_a_link_are_taken_together_in_their_order(waiting: Waiting) -> None:
    wanted = await waiting.add(5)

    (run,) = await waiting.queue().claim(4, {})

    assert [row["uid"] for row in run] == wanted
    assert {row["state"] for row in run} == {pb.Transfer.STATE_RUNNING}
    assert {row["attempt"] for row in run} == {1}


async def test_link_with_thousands_in_its_queue_leaves_streams_to_others(waiting: Waiting) -> None:
    await waiting.add(3000, "a", "b", size_bytes=10**9)
    await waiting.add(2, "c", "b", size_bytes=10**9)

    runs = await waiting.queue().claim(4, {})

    assert Counter(run[0]["lane"] for run in runs) == {"a>b": 2, "c>b": 2}


async def test_transfer_is_taken_by_one_worker_only(waiting: Waiting) -> None:
    await waiting.add(3 * RUN_FILES)
    queues = [waiting.queue() for _ in range(3)]

    found = await asyncio.gather(*(queue.claim(1, {}) for queue in queues))

    taken = [uid for runs in found for uid in uids(runs)]
    assert len(taken) == len(set(taken)) > 0


async def test_running_streams_count_against_their_link(waiting: Waiting) -> None:
    await waiting.add(10, size_bytes=10**9)
    queue = waiting.queue()

    first, second = await queue.claim(8, {}), await queue.claim(8, {})

    assert (len(first), len(second)) == (2, 0)


@pytest.mark.parametrize("count", [RUN_FILES // 10, RUN_FILES])
async def test_claim_and_settle_cost_the_same_statements_for_few_and_many(waiting: Waiting, count: int) -> None:
    await waiting.add(count)
    queue = waiting.queue()
    with count_statements(waiting.database) as claiming:
        runs = await queue.claim(8, {})
    with count_statements(waiting.database) as settling:
        await queue.settle([ended(row) for row in runs[0]])

    assert len(uids(runs)) == count
    assert len(claiming) <= 13, claiming
    assert len(settling) <= 8, settling


async def test_first_of_a_lane_is_found_in_the_index(waiting: Waiting) -> None:
    await waiting.add(10)
    with count_statements(waiting.database) as statements:
        await waiting.queue().claim(1, {})
    reading = [one for one in statements if one.startswith(("SELECT", "WITH RECURSIVE")) and "FROM transfer" in one]

    if waiting.database.dialect == "sqlite":
        async with waiting.database.read() as connection:
            for statement in reading:
                raw = await connection.get_raw_connection()
                driver: Any = raw.driver_connection
                plan = await driver.execute_fetchall(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?"))
                assert not [row[3] for row in plan if row[3].startswith("SCAN transfer")], statement
    assert reading


async def test_worker_that_is_gone_loses_what_it_has(waiting: Waiting) -> None:
    await waiting.add(3)
    gone, next_one = waiting.queue(timedelta(seconds=-1)), waiting.queue()
    (lost,) = await gone.claim(1, {})

    (found,) = await next_one.claim(1, {})
    await gone.settle([ended(row) for row in lost])

    assert uids([found]) == uids([lost])
    assert {row.state for row in (await waiting.rows()).values()} == {pb.Transfer.STATE_RUNNING}
    assert await gone.note_paths({row["uid"]: (row["lease_epoch"], "path") for row in lost}) == set()


async def test_failed_transfer_waits_and_comes_again(waiting: Waiting) -> None:
    await waiting.add(1)
    queue = waiting.queue()
    ((row,),) = await queue.claim(1, {})
    await queue.settle([ended(row, reason=pb.TRANSFER_REASON_TRANSIENT, message="reset", copied=None)])
    before = await queue.claim(1, {})
    async with waiting.database.write() as connection:
        await connection.execute(update(transfer).values(next_attempt_time=datetime.now(UTC)))

    ((again,),) = await queue.claim(1, {})

    assert before == []
    assert (again["uid"], again["attempt"]) == (row["uid"], 2)


async def test_failure_of_a_source_goes_on_at_once_from_another_on_its_lane(waiting: Waiting) -> None:
    await waiting.add(1)
    queue = waiting.queue()
    ((row,),) = await queue.claim(1, {})
    failed = ended(row, reason=pb.TRANSFER_REASON_SOURCE, copied=None, next_source="c", elsewhere=True)

    await queue.settle([failed])
    ((again,),) = await queue.claim(1, {})

    assert again["lane"] == "c>b"


async def test_transfer_past_its_deadline_is_given_up(waiting: Waiting) -> None:
    await waiting.add(1, deadline=datetime.now(UTC) - timedelta(seconds=1))

    runs = await waiting.queue().claim(1, {})

    (row,) = (await waiting.rows()).values()
    assert runs == []
    assert (row.state, row.reason) == (pb.Transfer.STATE_FAILED, pb.TRANSFER_REASON_DEADLINE)
    assert row.end_time is not None


async def test_no_attempt_is_planned_for_after_the_deadline(waiting: Waiting) -> None:
    await waiting.add(1, deadline=datetime.now(UTC) + timedelta(seconds=20))
    queue = waiting.queue()
    ((row,),) = await queue.claim(1, {})

    await queue.settle([ended(row, reason=pb.TRANSFER_REASON_TRANSIENT, copied=None, deadline=row["deadline"])])

    (after,) = (await waiting.rows()).values()
    assert (after.state, after.reason) == (pb.Transfer.STATE_FAILED, pb.TRANSFER_REASON_DEADLINE)


async def test_progress_is_noted_for_whoever_still_has_it(waiting: Waiting) -> None:
    await waiting.add(2)
    queue = waiting.queue()
    (run,) = await queue.claim(1, {})
    ours, lost = run

    await queue.note_progress({ours["uid"]: (ours["lease_epoch"], 7), lost["uid"]: (lost["lease_epoch"] - 1, 7)})

    rows = await waiting.rows()
    assert (rows[ours["uid"]].moved_bytes, rows[lost["uid"]].moved_bytes) == (7, 0)


async def test_attempts_tell_the_link_what_it_carries(waiting: Waiting) -> None:
    await waiting.add(3)
    queue, measures = waiting.queue(), waiting.measures
    (run,) = await queue.claim(1, {})
    well, badly, ours = run

    await queue.settle(
        [
            ended(well, bytes=1000, stream_seconds=2.0),
            ended(badly, reason=pb.TRANSFER_REASON_DESTINATION, message="refused", copied=None, stream_seconds=1.0),
            ended(ours, reason=pb.TRANSFER_REASON_SPACE, copied=None),
        ]
    )
    await measures.refresh()

    found = measures.known["a", "b"]
    assert (found.bytes, found.files, found.errors, found.stream_rate, found.success) == (1000, 1, 1, 500.0, 0.5)


async def test_attempts_are_kept_with_what_held_them_up(waiting: Waiting) -> None:
    await waiting.add(1)
    queue = waiting.queue()
    ((row,),) = await queue.claim(1, {})
    said = {"bottleneck": pb.BOTTLENECK_SOURCE, "queued_seconds": 3.0, "streamed_bytes": 10, "executor": "mover"}

    await queue.settle([ended(row, **said)])

    async with waiting.database.read() as connection:
        (kept,) = (await connection.execute(select(transfer_attempt))).all()
    assert {name: getattr(kept, name) for name in said} == said


async def test_workers_that_write_about_the_same_transfers_do_not_end_each_other(waiting: Waiting) -> None:
    await waiting.add(600)
    queue = waiting.queue()
    epochs = {row["uid"]: row["lease_epoch"] for run in await queue.claim(32, {}) for row in run}
    chance = random.Random(1)

    async def again(write: Callable[[list[str]], Awaitable[object]]) -> None:
        for _ in range(10):
            await write(chance.sample(list(epochs), len(epochs)))

    await asyncio.gather(
        again(lambda uids: queue.renew({uid: epochs[uid] for uid in uids})),
        again(lambda uids: queue.note_progress({uid: (epochs[uid], 5) for uid in uids})),
        again(lambda uids: queue.note_paths({uid: (epochs[uid], f"run/{uid}") for uid in uids})),
    )

    rows = await waiting.rows()
    assert all((rows[uid].moved_bytes, rows[uid].path) == (5, f"run/{uid}") for uid in epochs)
