"""The event log: nothing lost, nothing doubled, in order, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest
from sqlalchemy import Column, MetaData, Table, Text, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.common.v1 import event_pb2 as pb
from khomas.api.common.v1 import explanation_pb2
from khomas.kit.database import Database, count_statements
from khomas.kit.errors import CursorExpired, DomainError, FieldInvalid, FilterInvalid
from khomas.kit.events import EventConsumer, EventLog, NewEvent, cursor_table, event_table
from khomas.kit.events import consumer as consumer_module
from khomas.kit.events import log as log_module
from khomas.kit.events.consumer import Watch

metadata = MetaData()
event = event_table(metadata)
cursors = cursor_table(metadata)
effect = Table("effect", metadata, Column("subject", Text, primary_key=True))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


@pytest.fixture
def log(database: Database) -> EventLog:
    return EventLog(database, event)


async def add(database: Database, log: EventLog, *subjects: str, kind: str = "kit.thing.made") -> None:
    async with database.write() as connection:
        await log.append(connection, [NewEvent(kind, subject) for subject in subjects])


async def seen(log: EventLog, cursor: str = "", filter_text: str = "") -> tuple[list[str], str]:
    """Return the subjects from the cursor until now and the new cursor."""
    subjects: list[str] = []
    request = pb.WatchEventsRequest(cursor=cursor, filter=filter_text, until_now=True)
    async for batch in log.watch(request):
        subjects += [one.subject for one in batch.events]
        cursor = batch.cursor
    return subjects, cursor


async def test_event_carries_everything_about_the_change(database: Database, log: EventLog) -> None:
    resource = explanation_pb2.Explanation(subject="things/1", state="PENDING")
    async with database.write() as connection:
        await log.append(connection, [NewEvent("kit.thing.made", "things/1", "uid-1", "origin-1", resource)])
    [batch] = [batch async for batch in log.watch(pb.WatchEventsRequest(until_now=True))]
    [one] = batch.events
    unpacked = explanation_pb2.Explanation()
    assert one.resource.Unpack(unpacked)
    assert unpacked == resource
    assert (one.kind, one.subject, one.subject_uid, one.origin) == (
        "kit.thing.made", "things/1", "uid-1", "origin-1",
    )  # fmt: skip
    assert one.cursor == batch.cursor
    assert one.uid


async def test_thousand_events_are_one_statement(database: Database, log: EventLog) -> None:
    with count_statements(database) as statements:
        await add(database, log, *map(str, range(1000)))
    assert len(statements) == 1
    assert (await seen(log))[0] == [str(number) for number in range(1000)]


async def test_answers_are_bounded_by_bytes(database: Database, log: EventLog) -> None:
    large = explanation_pb2.Explanation(subject="x" * 900_000)
    async with database.write() as connection:
        await log.append(connection, [NewEvent("kit.thing.made", str(n), resource=large) for n in range(5)])
    await add(database, log, "small")
    batches = [batch async for batch in log.watch(pb.WatchEventsRequest(until_now=True))]
    assert [[one.subject for one in batch.events] for batch in batches] == [["0", "1"], ["2", "3"], ["4", "small"]]
    assert (await seen(log, batches[0].cursor))[0] == ["2", "3", "4", "small"]


async def test_event_above_the_bound_is_an_answer_by_itself(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "_MAX_BYTES", 10)
    resource = explanation_pb2.Explanation(subject="longer than that")
    async with database.write() as connection:
        await log.append(connection, [NewEvent("kit.thing.made", part, resource=resource) for part in "ab"])
    batches = [batch async for batch in log.watch(pb.WatchEventsRequest(until_now=True))]
    assert [[one.subject for one in batch.events] for batch in batches] == [["a"], ["b"]]


async def test_rolled_back_events_are_never_seen(database: Database, log: EventLog) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await log.append(connection, [NewEvent("kit.thing.made", "lost")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    await add(database, log, "kept")
    assert (await seen(log))[0] == ["kept"]


async def test_cursor_now_shows_only_what_comes(database: Database, log: EventLog) -> None:
    await add(database, log, "old")
    old, cursor = await seen(log, "now")
    await add(database, log, "new")
    assert (old, (await seen(log, cursor))[0]) == ([], ["new"])


@pytest.mark.parametrize(
    ("filter_text", "expected"),
    [
        ('kind = "kit.thing.*"', ["a", "b"]),
        ("kind = kit.other.made", ["c"]),
        ("subject = b OR subject = c", ["b", "c"]),
        ("NOT subject = a", ["b", "c"]),
    ],
)
async def test_filter_leaves_events_out(
    database: Database, log: EventLog, filter_text: str, expected: list[str]
) -> None:
    await add(database, log, "a")
    await add(database, log, "b", kind="kit.thing.changed")
    await add(database, log, "c", kind="kit.other.made")
    subjects, cursor = await seen(log, filter_text=filter_text)
    assert subjects == expected
    assert (await seen(log, cursor))[0] == []


async def test_bad_filter_and_bad_cursor_are_refused(log: EventLog) -> None:
    with pytest.raises(FilterInvalid):
        await seen(log, filter_text="knd = x")
    with pytest.raises(FieldInvalid):
        await seen(log, cursor="yesterday")


async def test_waiting_watcher_is_woken_by_a_commit(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not the look for the events of other processes that finds it.
    monkeypatch.setitem(log_module._POLL_SECONDS, database.dialect, 3600.0)
    async with aclosing(log.watch(pb.WatchEventsRequest(cursor="now"))) as watching:
        first = await anext(watching)
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0.05)
        await add(database, log, "a")
        async with asyncio.timeout(60):
            batch = await waiting
    assert not first.events
    assert [one.subject for one in batch.events] == ["a"]


async def test_idle_watcher_asks_for_no_events(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(log_module._POLL_SECONDS, database.dialect, 0.01)
    await add(database, log, "old")
    async with aclosing(log.watch(pb.WatchEventsRequest())) as watching:
        batch = await anext(watching)
        while not batch.events:
            batch = await anext(watching)
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0.1)
        with count_statements(database) as statements:
            async with asyncio.timeout(60):
                while len(statements) < 10:
                    await asyncio.sleep(0.01)
        await add(database, log, "new")
        async with asyncio.timeout(60):
            found = await waiting
    # Any transaction on PostgreSQL moves the end of the log, one of its own housekeeping too.
    assert 4 * len([one for one in statements if "FROM event" in one]) < len(statements)
    assert [one.subject for one in found.events] == ["new"]


async def test_pruned_cursor_is_out_of_range_and_the_empty_one_is_not(database: Database) -> None:
    log = EventLog(database, event, retention=timedelta(milliseconds=50))
    await add(database, log, "a")
    _, cursor = await seen(log)
    await add(database, log, "b", "c")
    await asyncio.sleep(0.06)
    await log.prune()
    await add(database, log, "d")
    with pytest.raises(CursorExpired):
        await seen(log, cursor)
    assert (await seen(log))[0] == ["d"]


async def test_pruning_does_not_disturb_who_has_seen_everything(database: Database) -> None:
    log = EventLog(database, event, retention=timedelta(milliseconds=50))
    await add(database, log, "a", "b")
    _, cursor = await seen(log)
    await asyncio.sleep(0.06)
    await log.prune()
    await log.prune()
    await add(database, log, "c")
    assert (await seen(log, cursor))[0] == ["c"]


async def test_cursor_from_before_a_restore_is_out_of_range(log: EventLog) -> None:
    with pytest.raises(CursorExpired):
        await seen(log, "fffffffff.fffff")


async def test_resuming_watcher_gets_everything_once_under_concurrent_writers(
    database: Database, log: EventLog
) -> None:
    writers, each = 6, 25

    async def write(writer: int) -> None:
        for number in range(each):
            async with database.write() as connection:
                await log.append(connection, [NewEvent("kit.thing.made", f"{writer}/{number}/{part}") for part in "ab"])
                # On PostgreSQL ids of open transactions overtake each other here.
                await asyncio.sleep(0.002 * ((writer + number) % 4))

    async def read() -> list[str]:
        subjects: list[str] = []
        cursor = ""
        while len(subjects) < 2 * writers * each:
            # A new watch at every batch, as after a disconnect.
            async with aclosing(log.watch(pb.WatchEventsRequest(cursor=cursor))) as watching:
                batch = await anext(watching)
                subjects += [one.subject for one in batch.events]
                cursor = batch.cursor
        return subjects

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read())
        for writer in range(writers):
            tasks.create_task(write(writer))
    subjects = reader.result()
    written = {f"{writer}/{number}/{part}" for writer in range(writers) for number in range(each) for part in "ab"}
    assert len(subjects) == len(set(subjects))
    assert set(subjects) == written
    numbers = [int(subject.split("/")[1]) for subject in subjects if subject.startswith("3/")]
    assert numbers == sorted(numbers)


@asynccontextmanager
async def served(log: EventLog) -> AsyncIterator[Watch]:
    """Serve the log over a real channel."""

    async def watch(
        request: pb.WatchEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        try:
            async for batch in log.watch(request):
                yield batch
        except DomainError as error:
            await context.abort(error.code, error.message)

    handler = grpc.unary_stream_rpc_method_handler(
        watch,
        request_deserializer=pb.WatchEventsRequest.FromString,
        response_serializer=pb.WatchEventsResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("kit.Test", {"Watch": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.unary_stream(
                "/kit.Test/Watch",
                request_serializer=pb.WatchEventsRequest.SerializeToString,
                response_deserializer=pb.WatchEventsResponse.FromString,
            )
    finally:
        await server.stop(None)


async def apply(connection: AsyncConnection, events: Sequence[pb.Event]) -> None:
    # A second delivery breaks the primary key.
    await connection.execute(insert(effect), [{"subject": one.subject} for one in events])


async def applied(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.execute(select(effect.c.subject).order_by(effect.c.subject))).scalars())


async def until_applied(database: Database, count: int) -> None:
    while len(await applied(database)) < count:
        await asyncio.sleep(0.01)


async def test_consumer_applies_each_event_once_over_restarts_of_itself(database: Database, log: EventLog) -> None:
    async with served(log) as watch, asyncio.timeout(20):
        for number in range(6):
            consumer = EventConsumer(database, cursors, name="test", watch=watch)
            running = asyncio.create_task(consumer.run(apply))
            await add(database, log, f"{number}/a", f"{number}/b")
            # From "before the stream is there" to "after the batch was applied".
            await asyncio.sleep(0.03 * number)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        running = asyncio.create_task(EventConsumer(database, cursors, name="test", watch=watch).run(apply))
        await until_applied(database, 12)
        running.cancel()
    assert await applied(database) == [f"{number}/{part}" for number in range(6) for part in "ab"]


async def test_consumer_that_cannot_get_on_says_so(
    database: Database, log: EventLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer_module, "_LONGEST_PAUSE_SECONDS", 0.1)
    # More than this server's client takes in with one message.
    huge = explanation_pb2.Explanation(subject="x" * 5_000_000)
    async with database.write() as connection:
        await log.append(connection, [NewEvent("kit.thing.made", "huge", resource=huge)])
    async with served(log) as watch, asyncio.timeout(20):
        running = asyncio.create_task(EventConsumer(database, cursors, name="test", watch=watch).run(apply))
        while not (said := [one for one in caplog.records if one.message == "events.waits"]):
            await asyncio.sleep(0.01)
        running.cancel()
    assert said[0].code == "RESOURCE_EXHAUSTED"  # type: ignore[attr-defined]


async def test_of_two_processes_with_the_same_consumer_one_gets_each_event(database: Database, log: EventLog) -> None:
    async with served(log) as watch, asyncio.timeout(60), asyncio.TaskGroup() as group:
        running = [
            group.create_task(EventConsumer(database, cursors, name="test", watch=watch).run(apply)) for _ in range(2)
        ]
        for number in range(30):
            await add(database, log, f"{number:02}/a", f"{number:02}/b")
        await until_applied(database, 60)
        await add(database, log, "last")
        await until_applied(database, 61)
        assert not any(one.done() for one in running)
        for one in running:
            one.cancel()
    assert await applied(database) == [*(f"{number:02}/{part}" for number in range(30) for part in "ab"), "last"]


async def test_consumer_lists_again_when_its_cursor_is_too_old(database: Database) -> None:
    log = EventLog(database, event, retention=timedelta(milliseconds=50))
    async with database.write() as connection:
        await connection.execute(insert(cursors).values(consumer="test", cursor="0.1"))
    listed = asyncio.Event()
    await add(database, log, "a")
    await add(database, log, "b")
    await asyncio.sleep(0.06)
    await log.prune()

    async def relist() -> None:
        listed.set()

    async with served(log) as watch, asyncio.timeout(20):
        running = asyncio.create_task(EventConsumer(database, cursors, name="test", watch=watch).run(apply, relist))
        await listed.wait()
        await add(database, log, "c")
        await until_applied(database, 1)
        running.cancel()
    assert await applied(database) == ["c"]
