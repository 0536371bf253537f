"""What the queue of transfers costs with a hundred thousand waiting, against a few thousand."""

import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from khomas.api.storage.v1 import transfer_pb2
from khomas.kit.database import Database, insert_many
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uid, new_uids
from khomas.kit.testing.postgresql import postgresql_server
from khomas.storage.app import open_database
from khomas.storage.landing import Wanted
from khomas.storage.links.measures import Measures, Streams
from khomas.storage.tables import event, transfer
from khomas.storage.transfers.attempts import Attempt
from khomas.storage.transfers.queue import Outcome, Queue
from khomas.storage.transfers.retry import Policy
from khomas.storage.transfers.turns import deal, lane
from tests.performance.figures import Figure

_LINKS = 20
_TOGETHER = 5000
_ROUNDS = 10
_MIB = 2**20
_POLICY = Policy(attempts=5, pause=timedelta(seconds=30), max_pause=timedelta(hours=1))


async def measure(waiting: int = 100_000) -> list[Figure]:
    """Measure it on both databases."""
    with postgresql_server(durable=True) as server, tempfile.TemporaryDirectory(prefix="khomas-") as name:
        return [
            *await _queue("PostgreSQL", await server.create_database(), waiting),
            *await _queue("SQLite", f"sqlite+aiosqlite:///{Path(name) / 'storage.db'}", waiting),
        ]


async def _queue(kind: str, url: str, waiting: int) -> list[Figure]:
    database = open_database(url)
    await database.upgrade()
    try:
        queue = Queue(
            database,
            EventLog(database, event),
            new_uid(),
            timedelta(minutes=10),
            _POLICY,
            Measures(database, Streams(first=2, most=32)),
        )
        await _fill(database, _TOGETHER)
        few = [await _taken_and_settled(queue) for _ in range(_ROUNDS)]
        for _ in range(waiting // _TOGETHER):
            await _fill(database, _TOGETHER)
        many = [await _taken_and_settled(queue) for _ in range(_ROUNDS)]
    finally:
        await database.close()
    name = f"transfers taken and settled with {waiting:,} waiting, {kind}"
    return [
        Figure(f"{name}: CPU of the service", "us", [1e6 * cpu / count for count, cpu, _ in many]),
        Figure(f"{name}", "1/s", [count / seconds for count, _, seconds in many]),
        Figure(
            f"{name}: CPU against that with {_TOGETHER:,}",
            "x",
            [(big[1] / big[0]) / (small[1] / small[0]) for big, small in zip(many, few, strict=True)],
            "<= 1.5",
        ),
    ]


async def _fill(database: Database, count: int) -> None:
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = [
        {
            "uid": uid,
            "file": f"/hess/{uid}",
            "file_uid": uid,
            "destination": f"to{number % _LINKS}",
            "sources": "",
            "priority": 0,
            "max_attempts": 0,
            "origin": "",
            "owner": "tester",
            "share": f"share{number % 3}",
            "state": transfer_pb2.Transfer.STATE_WAITING,
            "reason": transfer_pb2.TRANSFER_REASON_QUEUED,
            "message": "",
            "size_bytes": _MIB,
            "attempt": 0,
            "path": "",
            "next_attempt_time": now,
            "create_time": now,
            "state_time": now,
            "lane": lane("from", f"to{number % _LINKS}"),
            "turn": 0.0,
        }
        for number, uid in enumerate(new_uids(count))
    ]
    async with database.write() as connection:
        await deal(connection, rows, {})
        await insert_many(connection, transfer, rows)


async def _taken_and_settled(queue: Queue) -> tuple[int, float, float]:
    """Return how many were, and the seconds of CPU and of the clock."""
    cpu, begin = time.process_time(), time.perf_counter()
    runs = await queue.claim(8, {})
    rows = [row for run in runs for row in run]
    await queue.settle([_done(row) for row in rows])
    return len(rows), time.process_time() - cpu, time.perf_counter() - begin


def _done(row: Any) -> Outcome:
    attempt = Attempt(row, datetime.now(UTC), time.monotonic(), wanted=Wanted(_MIB, "00000001"))
    attempt.copied = attempt.wanted
    return replace(attempt.end(), source="from", bytes=_MIB)
