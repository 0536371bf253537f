"""The worker of recalls over a tape system in memory, on both databases."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import func, insert, select, update

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import recall_pb2, storage_element_pb2
from khomas.kit.database import Database, count_statements
from khomas.kit.events import EventLog
from khomas.kit.ids import new_uid
from khomas.storage import tables
from khomas.storage.app import open_database
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.protocols.interface import Plugin, Problem, ProtocolFault, Recall, Recalling, StorageProtocol
from khomas.storage.recalls.messages import State
from khomas.storage.recalls.online import Online
from khomas.storage.recalls.tables import recall, recall_request
from khomas.storage.recalls.verdicts import Patience
from khomas.storage.recalls.worker import Pace, Worker

ELEMENT = "tape"
AT_ONCE = timedelta(0)
Told = Recalling | ProtocolFault


@dataclass(slots=True)
class MemoryTape:
    """A tape system that says what the test wants; what it does not know it says it does not know."""

    states: dict[str, Told] = field(default_factory=dict)
    # How many files each request was about.
    asked: list[int] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    # What the answer to requests is, and whether they arrive all the same.
    trouble: Problem | None = None
    arrives: bool = True
    # What happens while it is asked how far something is.
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def stage(self, paths: Sequence[str], lifetime: timedelta) -> list[str | ProtocolFault]:
        if self.arrives:
            self.asked.append(len(paths))
            self.states |= dict.fromkeys(paths, Recalling(Recall.WAITING))
        if self.trouble is not None:
            return [ProtocolFault(self.trouble, "trouble")] * len(paths)
        return [f"request {len(self.asked)}"] * len(paths)

    async def staging(self, request: str, paths: Sequence[str]) -> list[Told]:
        if self.meanwhile is not None:
            await self.meanwhile()
        return [self.states.get(path, Recalling(Recall.UNKNOWN)) for path in paths]

    async def cancel(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        self.cancelled += paths
        return [None] * len(paths)

    async def release(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        self.released += paths
        return [None] * len(paths)

    def bring(self, *paths: str) -> None:
        """Have files on disk."""
        self.states |= dict.fromkeys(paths, Recalling(Recall.DONE))


@dataclass(frozen=True, slots=True)
class _Behind:
    """As much of a protocol as recalls need."""

    tape: MemoryTape | None


@dataclass(frozen=True, slots=True)
class Bench:
    """A database, a tape system, and files on it."""

    database: Database
    tape: MemoryTape
    protocols: Protocols
    online: Online

    def worker(self, **patience: Any) -> Worker:
        """Make another one, as after the end of a process."""
        wanted: dict[str, Any] = {
            "poll": AT_ONCE,
            "pause": AT_ONCE,
            "grace": timedelta(hours=1),
            "attempts": 3,
        } | patience
        pace = Pace(gather=AT_ONCE, lease=AT_ONCE, patience=Patience(**wanted))
        log = EventLog(self.database, tables.event)
        return Worker(self.database, log, Elements(self.database), self.protocols, owner=new_uid(), pace=pace)

    async def want(self, *names: str) -> None:
        """Want files on disk."""
        await self.online.want([self.file(name) for name in names])

    def file(self, name: str) -> file_pb2.File:
        """Describe a file on tape; its uid is its name."""
        file = file_pb2.File(name=f"/{name}", uid=name, size_bytes=1)
        file.replicas.add(storage_element=ELEMENT, path=name, state=file_pb2.Replica.STATE_AVAILABLE)
        return file

    async def states(self) -> dict[str, int]:
        """Tell how all recalls are, by path."""
        async with self.database.read() as connection:
            rows = (await connection.execute(select(recall.c.path, recall.c.state))).all()
        return {row.path: row.state for row in rows}

    async def column(self, name: str) -> list[Any]:
        """Read a column of all recalls."""
        async with self.database.read() as connection:
            return list((await connection.scalars(select(recall.c[name]).order_by(recall.c.path))).all())

    async def set(self, **values: Any) -> None:
        """Change all recalls."""
        async with self.database.write() as connection:
            await connection.execute(update(recall).values(**values))


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    database = open_database(database_url)
    await database.upgrade()
    now = datetime.now(UTC)
    row = {
        "id": ELEMENT, "uid": new_uid(), "description": "", "site": "", "read_only": False, "capacity_bytes": 0,
        "media": storage_element_pb2.StorageElement.MEDIA_TAPE, "access_points": [["memory", "/", "", []]],
        "create_time": now, "update_time": now, "version": 1, "free_bytes": -1, "reachable": True, "message": "",
        "check_time": now,
    }  # fmt: skip
    async with database.write() as connection:
        await connection.execute(insert(tables.storage_element), row)
    tape = MemoryTape()
    protocol = cast(StorageProtocol, _Behind(tape))  # recalls look at its tape alone
    protocols = Protocols({"memory": Plugin(open=lambda _: protocol)}, {})
    log = EventLog(database, tables.event)
    online = Online(database, log, Elements(database), protocols, timedelta(days=1))
    yield Bench(database, tape, protocols, online)
    await database.close()


async def test_thousand_files_cost_few_statements_and_one_request(bench: Bench) -> None:
    names = [f"file{number}" for number in range(1000)]
    with count_statements(bench.database) as wanting:
        await bench.want(*names)
    assert len(wanting) <= 6
    with count_statements(bench.database) as working:
        await bench.worker().work()
    assert bench.tape.asked == [1000]
    assert len(working) <= 40
    assert set((await bench.states()).values()) == {State.STATE_REQUESTED}
    with count_statements(bench.database) as asking:
        files = [bench.file(name) for name in names]
        assert len(await bench.online.offline(files)) == 1000
    assert len(asking) <= 2


async def test_places_in_the_queue_are_counted_where_nobody_tells_them(bench: Bench) -> None:
    await bench.want("a", "b", "c")
    await bench.worker().work()
    assert await bench.column("queue_position") == [1, 2, 3]
    bench.tape.bring("a")
    bench.tape.states["c"] = Recalling(Recall.WAITING, queue_position=12)
    await bench.worker().work()
    assert await bench.column("queue_position") == [0, 1, 12]


async def test_request_of_which_the_answer_was_lost_is_not_made_twice(bench: Bench) -> None:
    await bench.want("a", "b")
    bench.tape.trouble = Problem.PASSING
    await bench.worker().work()
    assert set((await bench.states()).values()) == {State.STATE_WAITING}
    bench.tape.trouble = None
    await bench.worker().work()
    assert set((await bench.states()).values()) == {State.STATE_REQUESTED}
    assert bench.tape.asked == [2]


async def test_request_that_never_arrived_is_made_again(bench: Bench) -> None:
    await bench.want("a", "b")
    bench.tape.trouble, bench.tape.arrives = Problem.PASSING, False
    await bench.worker().work()
    bench.tape.trouble, bench.tape.arrives = None, True
    await bench.worker().work()
    assert bench.tape.asked == [2]
    assert set((await bench.states()).values()) == {State.STATE_REQUESTED}


async def test_front_end_that_is_away_uses_up_no_patience(bench: Bench) -> None:
    await bench.want("a")
    bench.tape.trouble, bench.tape.arrives = Problem.UNREACHABLE, False
    for _ in range(10):
        await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_WAITING}
    assert await bench.column("reason") == [recall_pb2.RECALL_REASON_FRONT_END]
    bench.tape.trouble, bench.tape.arrives = None, True
    await bench.worker().work()
    bench.tape.states["a"] = ProtocolFault(Problem.UNREACHABLE, "away")
    for _ in range(10):
        await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_REQUESTED}
    bench.tape.bring("a")
    await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_ONLINE}


async def test_errors_of_the_tape_are_tried_some_times(bench: Bench) -> None:
    await bench.want("a")
    for _ in range(2):
        await bench.worker().work()
        bench.tape.states["a"] = Recalling(Recall.FAILED, "no such tape")
        await bench.worker().work()
        assert await bench.states() == {"a": State.STATE_WAITING}
    await bench.worker().work()
    bench.tape.states["a"] = Recalling(Recall.FAILED, "no such tape")
    await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_FAILED}
    assert bench.tape.asked == [1, 1, 1]
    await bench.want("a")
    assert sorted(await bench.column("state")) == [State.STATE_WAITING, State.STATE_FAILED]


async def test_what_the_tape_system_has_lost_is_not_asked_for_again(bench: Bench) -> None:
    await bench.want("a")
    await bench.worker().work()
    bench.tape.states["a"] = ProtocolFault(Problem.ABSENT, "no such file")
    await bench.worker().work()
    assert await bench.column("reason") == [recall_pb2.RECALL_REASON_LOST]


async def test_request_that_was_forgotten_is_made_again_after_a_while(bench: Bench) -> None:
    await bench.want("a")
    await bench.worker().work()
    bench.tape.states.clear()
    await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_REQUESTED}
    await bench.worker(grace=AT_ONCE).work()
    assert await bench.states() == {"a": State.STATE_WAITING}
    await bench.worker().work()
    assert bench.tape.asked == [1, 1]


async def test_file_is_released_when_nobody_wants_it_any_more(bench: Bench) -> None:
    await bench.want("a", "b")
    bench.tape.bring("a", "b")
    await bench.worker().work()
    bench.tape.bring("a", "b")
    await bench.worker().work()
    assert await bench.online.offline([bench.file("a")]) == frozenset()
    await bench.set(pin_time=datetime.now(UTC) - timedelta(seconds=1))
    async with bench.database.write() as connection:
        later = datetime.now(UTC) + timedelta(hours=1)
        await connection.execute(update(recall).where(recall.c.path == "b").values(pin_time=later))
    await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_RELEASED, "b": State.STATE_ONLINE}
    assert bench.tape.released == ["a"]
    assert await bench.online.offline([bench.file("a")]) == {("a", ELEMENT)}


async def test_what_is_wanted_again_is_not_let_go(bench: Bench) -> None:
    await bench.want("a")
    await bench.worker().work()
    bench.tape.bring("a")
    await bench.worker().work()
    await bench.set(state=State.STATE_RELEASED, owed="release", active_key=None, due_time=datetime.now(UTC))
    await bench.want("a")
    await bench.worker().work()
    assert bench.tape.released == []


async def test_worker_whose_recall_was_cancelled_meanwhile_changes_nothing(bench: Bench) -> None:
    await bench.want("a")
    await bench.worker().work()
    bench.tape.bring("a")
    bench.tape.meanwhile = lambda: bench.set(
        state=State.STATE_CANCELLED, lease_epoch=recall.c.lease_epoch + 1, due_time=None
    )
    await bench.worker().work()
    assert await bench.states() == {"a": State.STATE_CANCELLED}


async def test_old_recalls_are_forgotten(bench: Bench) -> None:
    await bench.want("a", "b")
    await bench.worker().work()
    long_ago = datetime.now(UTC) - timedelta(days=400)
    async with bench.database.write() as connection:
        ended = {"state": State.STATE_RELEASED, "active_key": None, "end_time": long_ago}
        await connection.execute(update(recall).where(recall.c.path == "a").values(**ended))
        await connection.execute(update(recall_request).values(create_time=long_ago))
    await bench.worker().prune()
    assert await bench.states() == {"b": State.STATE_REQUESTED}
    async with bench.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(recall_request))).scalar_one() == 1


async def test_tape_that_recalls_by_itself_is_simply_read(bench: Bench) -> None:
    protocol = cast(StorageProtocol, _Behind(None))
    protocols = Protocols({"memory": Plugin(open=lambda _: protocol)}, {})
    log = EventLog(bench.database, tables.event)
    online = Online(bench.database, log, Elements(bench.database), protocols, timedelta(days=1))
    assert await online.offline([bench.file("a")]) == frozenset()
