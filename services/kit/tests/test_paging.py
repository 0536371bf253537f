"""Pages: complete, stable while rows are added, and tied to their list."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Column, MetaData, Table, delete, select

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.kit.database import Database, KeyText, RowId, UtcTime, count_statements, insert_many
from khomas.kit.errors import FieldInvalid, OrderInvalid, PageTokenInvalid
from khomas.kit.paging import Ordering, Page, list_page

metadata = MetaData()
thing = Table(
    "thing",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", KeyText, nullable=False),
    Column("made", UtcTime, nullable=False),
)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
ORDERING = Ordering({"name": thing.c.name, "create_time": thing.c.made}, thing.c.id, default="create_time desc")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        # Names and times repeat, so every order has equals in it.
        rows = [{"name": f"{n % 7}é", "made": NOON + timedelta(microseconds=n % 5)} for n in range(100)]
        await insert_many(connection, thing, rows)
    yield database
    await database.close()


async def page(database: Database, request: pb.ListJobsRequest) -> Page:
    async with database.read() as connection:
        return await list_page(
            connection, select(thing.c.id, thing.c.name), request, ORDERING, default_size=10, max_size=30
        )


@pytest.mark.parametrize(
    ("order_by", "key"),
    [
        ("", lambda n: (-(n % 5), -n)),
        ("name", lambda n: (n % 7, n)),
        ("name desc", lambda n: (-(n % 7), -n)),
        ("create_time, name", lambda n: (n % 5, n % 7, n)),
        ("create_time desc, name", lambda n: (-(n % 5), n % 7, n)),
        ("name asc , create_time desc", lambda n: (n % 7, -(n % 5), -n)),
    ],
)
async def test_pages_together_are_the_list_in_order(
    database: Database, order_by: str, key: Callable[[int], tuple[int, ...]]
) -> None:
    request = pb.ListJobsRequest(page_size=7, order_by=order_by)
    ids: list[int] = []
    while True:
        one = await page(database, request)
        ids += [row.id for row in one.rows]
        request.page_token = one.next_page_token
        if not request.page_token:
            break
    assert ids == [n + 1 for n in sorted(range(100), key=key)]


async def test_rows_added_and_removed_between_pages_disturb_nothing(database: Database) -> None:
    request = pb.ListJobsRequest(page_size=30, order_by="name")
    first = await page(database, request)
    async with database.write() as connection:
        await connection.execute(delete(thing).where(thing.c.id == first.rows[-1].id))
        await insert_many(connection, thing, [{"name": "0", "made": NOON}] * 10)
    request.page_token = first.next_page_token
    second = await page(database, request)
    expected = [n + 1 for n in sorted(range(100), key=lambda n: (n % 7, n))]
    assert [row.id for row in (*first.rows, *second.rows)] == expected[:60]


async def test_page_is_one_statement(database: Database) -> None:
    with count_statements(database) as statements:
        await page(database, pb.ListJobsRequest())
    assert len(statements) == 1


@pytest.mark.parametrize(("asked", "given"), [(0, 10), (1, 1), (29, 29), (30, 30), (31, 30), (2_000_000, 30)])
async def test_page_size_has_a_default_and_a_maximum(database: Database, asked: int, given: int) -> None:
    assert len((await page(database, pb.ListJobsRequest(page_size=asked))).rows) == given


async def test_negative_page_size_is_refused(database: Database) -> None:
    with pytest.raises(FieldInvalid):
        await page(database, pb.ListJobsRequest(page_size=-1))


async def test_exactly_full_last_page_has_no_token(database: Database) -> None:
    request = pb.ListJobsRequest(page_size=25)
    for _ in range(4):
        one = await page(database, request)
        request.page_token = one.next_page_token
    assert (len(one.rows), one.next_page_token) == (25, "")


async def test_page_size_may_change_between_pages(database: Database) -> None:
    first = await page(database, pb.ListJobsRequest(page_size=3))
    second = await page(database, pb.ListJobsRequest(page_size=5, page_token=first.next_page_token))
    assert len({row.id for row in (*first.rows, *second.rows)}) == 8


async def test_token_of_other_arguments_is_refused(database: Database) -> None:
    token = (await page(database, pb.ListJobsRequest(filter="state = DONE"))).next_page_token
    with pytest.raises(PageTokenInvalid):
        await page(database, pb.ListJobsRequest(filter="state = FAILED", page_token=token))


@pytest.mark.parametrize("change", [lambda t: "A" + t[1:], lambda t: t[:-4], lambda t: "é" + t, lambda t: "x"])
async def test_changed_token_is_refused(database: Database, change: Callable[[str], str]) -> None:
    token = (await page(database, pb.ListJobsRequest())).next_page_token
    with pytest.raises(PageTokenInvalid):
        await page(database, pb.ListJobsRequest(page_token=change(token)))


@pytest.mark.parametrize("order_by", ["nam", "name up", "name,", "name; drop table thing", ",", "-name"])
async def test_unknown_order_is_refused(database: Database, order_by: str) -> None:
    with pytest.raises(OrderInvalid):
        await page(database, pb.ListJobsRequest(order_by=order_by))


async def test_unknown_order_field_gets_the_nearest_names(database: Database) -> None:
    with pytest.raises(OrderInvalid) as refused:
        await page(database, pb.ListJobsRequest(order_by="create_tme"))
    assert refused.value.metadata["nearest"] == "create_time"


def test_field_that_may_be_missing_is_no_order() -> None:
    with pytest.raises(ValueError, match="coalesce"):
        Ordering({"end": Column("end", UtcTime)}, thing.c.id)
