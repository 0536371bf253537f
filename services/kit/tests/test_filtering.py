"""The filter language: what parses, what it means in SQL, and how it is refused."""

import operator
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Boolean, Column, Float, ForeignKey, Integer, MetaData, Table, Text, exists, select

from khomas.api.catalog.v1 import file_pb2
from khomas.api.scheduler.v1 import state_pb2
from khomas.kit.boundary.status import status_of
from khomas.kit.database import Database, KeyText, RowId, UtcTime, insert_many
from khomas.kit.errors import FilterInvalid
from khomas.kit.filtering import Fields, fields, parse, where
from khomas.kit.filtering.ast import And, Comparison, Node, Not, Operator, Or, Value

metadata = MetaData()
thing = Table(
    "thing",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", KeyText),
    Column("size", Integer),
    Column("weight", Float),
    Column("good", Boolean),
    Column("made", UtcTime),
    Column("state", Integer),
    Column("seconds", Float),
    Column("kind", Text),
)
label = Table(
    "label",
    metadata,
    Column("thing", ForeignKey("thing.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("number", Float),
)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
FIELDS: Fields = {
    "name": fields.text(thing.c.name),
    "size_bytes": fields.integer(thing.c.size),
    "weight": fields.number(thing.c.weight),
    "good": fields.boolean(thing.c.good),
    "create_time": fields.time(thing.c.made),
    "state": fields.enum(thing.c.state, file_pb2.File.State),
    "wall_time": fields.duration(thing.c.seconds),
    "kind": fields.choice(thing.c.kind, ["small", "large"]),
    "metadata": {
        "zenith": fields.within(
            fields.number(label.c.number),
            lambda condition: exists().where(label.c.thing == thing.c.id, label.c.key == "zenith", condition),
        )
    },
}


@dataclass(frozen=True)
class Row:
    """A row as Python sees it."""

    id: int
    name: str | None
    size: int | None


ROWS = [
    Row(number, name, size)
    for number, (name, size) in enumerate(
        [("", 0), ("a", 1), ("A", 2), ("ab", None), (None, 3), ("a*b", 4), ("a%b", 5), ("a_b\\", -6), ("é\"'b", 7)],
        start=1,
    )
]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, metadata=metadata, migrations="nowhere:migrations")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        rows = [
            {
                "id": row.id,
                "name": row.name,
                "size": row.size,
                "weight": row.id / 2,
                "good": row.id % 2 == 0,
                "made": NOON + timedelta(hours=row.id),
                "state": row.id % 3 + 1,
                "seconds": 60.0 * row.id,
                "kind": "small" if row.id < 5 else "large",
            }
            for row in ROWS
        ]
        await insert_many(connection, thing, rows)
        await insert_many(connection, label, [{"thing": n, "key": "zenith", "number": 10.0 * n} for n in (2, 4, 6)])
    yield database
    await database.close()


async def found(database: Database, text: str) -> list[int]:
    async with database.read() as connection:
        return list((await connection.execute(select(thing.c.id).where(where(text, FIELDS)).order_by("id"))).scalars())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("name = a", [2]),
        ("name = a*", [2, 4, 6, 7, 8]),
        ('name = "a\\*b"', [6]),
        ('name = "*b"', [4, 6, 7, 9]),
        ("name:_", [8]),
        ("name:*", [1, 2, 3, 4, 6, 7, 8, 9]),
        ("NOT name:*", [5]),
        ("name != a", [1, 3, 4, 5, 6, 7, 8, 9]),
        ("size_bytes >= 4 AND size_bytes < 7", [6, 7]),
        ("size_bytes = -6", [8]),
        ("size_bytes > -9000000000000000000 AND size_bytes < 3", [1, 2, 3, 8]),
        ("weight > 3.9", [8, 9]),
        ("good = true id", None),
        ("good = true", [2, 4, 6, 8]),
        ("create_time > 2024-05-01T20:00:00Z", [9]),
        ('create_time <= "2024-05-01T15:00:00+02:00"', [1]),
        ("create_time < 2024-05-02", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("state = ACTIVE", [3, 6, 9]),
        ("state = STATE_ACTIVE OR state = deleting", [1, 3, 4, 6, 7, 9]),
        ("state != ACTIVE", [1, 2, 4, 5, 7, 8]),
        ("wall_time > 7m30s", [8, 9]),
        ("wall_time <= 0.05h", [1, 2, 3]),
        ("kind = LARGE", [5, 6, 7, 8, 9]),
        ("metadata.zenith > 20", [4, 6]),
        ("metadata.zenith != 40", [1, 2, 3, 5, 6, 7, 8, 9]),
        ("metadata:zenith", [2, 4, 6]),
        ("NOT metadata:zenith", [1, 3, 5, 7, 8, 9]),
        ("size_bytes = 1 OR size_bytes = 2 kind = small", [2, 3]),
        ("kind = small AND size_bytes = 1 OR size_bytes = 2", [2, 3]),
        ("-(size_bytes = 1 OR kind = large)", [1, 3, 4]),
    ],
)
async def test_filter_finds(database: Database, text: str, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(FilterInvalid):
            await found(database, text)
    else:
        assert await found(database, text) == expected


@pytest.mark.parametrize(
    ("text", "position", "nearest"),
    [
        ("stat = ACTIVE", 1, "state"),
        ("good = true AND sise_bytes > 3", 17, "size_bytes"),
        ("kind = smal", 8, "SMALL, LARGE"),
        ("kind = tiny", 8, "LARGE, SMALL"),
        ("state < ACTIVE", 9, ""),
        ("metadata.zenit = 3", 1, "metadata.zenith"),
        ("metadata:zenit", 10, "zenith"),
        ("metadata = 3", 1, "metadata.zenith"),
        ("name.first = a", 1, ""),
        ("size_bytes = many", 14, ""),
        ("size_bytes = 4*", 14, ""),
        ("size_bytes > 99999999999999999999", 14, ""),
        ("weight > nan", 10, ""),
        ("good = yes", 8, ""),
        ("create_time > yesterday", 15, ""),
        ("create_time > 2024-05-01T12:00:00", 15, ""),
        ("wall_time > 30", 13, ""),
        ("name = ", 8, ""),
        ("name", 5, ""),
        ("(name = a", 10, ""),
        ("name = a)", 9, ""),
        ("AND name = a", 1, ""),
        ("name = a OR", 12, ""),
        ('name = "a', 8, ""),
        ("name == a", 7, ""),
        ("name = a\0", 9, ""),
        ("(" * 5000, 42, ""),
        ("name = a " * 301, 2701, ""),
    ],
)
async def test_wrong_filter_is_refused_with_its_position_and_the_nearest_names(
    text: str, position: int, nearest: str
) -> None:
    with pytest.raises(FilterInvalid) as refused:
        where(text, FIELDS)
    assert refused.value.metadata == {"position": str(position), "nearest": nearest}
    assert nearest in refused.value.message


@pytest.mark.parametrize(("written", "first"), [("done", "CANCELLED"), ("faild", "FAILED")])
def test_unknown_value_is_answered_with_all_values_the_most_like_first(written: str, first: str) -> None:
    states = {"state": fields.enum(thing.c.state, state_pb2.JobState)}
    with pytest.raises(FilterInvalid) as refused:
        where(f"state = {written}", states)
    names = refused.value.metadata["nearest"].split(", ")
    known = [name.removeprefix("JOB_STATE_") for name, number in state_pb2.JobState.items() if number]
    assert sorted(names) == sorted(known)
    assert names[0] == first
    assert refused.value.metadata["nearest"] in refused.value.message


def test_unknown_field_is_answered_with_those_that_a_message_can_hold() -> None:
    many: Fields = {f"key_{number:03}": fields.text(thing.c.name) for number in range(100)}
    for text, before in (
        ("nosuchfield = 1", ""),
        ("metadata.nosuchfield = 1", "metadata."),
        ("metadata = 1", "metadata."),
    ):
        with pytest.raises(FilterInvalid) as refused:
            where(text, {"metadata": many} if before else many)
        names = refused.value.metadata["nearest"].split(", ")
        assert names == [f"{before}key_{number:03}" for number in range(40)]


def test_refusal_with_long_names_fits_into_a_reply() -> None:
    many: Fields = {"metadata": {f"key_{number:0120}": fields.text(thing.c.name) for number in range(100)}}
    with pytest.raises(FilterInvalid) as refused:
        where("metadata.nosuchfield = 1", many)
    assert len(status_of(refused.value).SerializeToString()) < 4000


texts = st.text(alphabet="aAb*%_\\\"' é/.:-=()ANDOR", max_size=6)
names = st.text(alphabet='ab."\\ *ORé', min_size=1, max_size=4)
# A lone `*` is open at its start.
values = st.builds(Value, texts, st.booleans(), st.booleans()).filter(
    lambda value: value.text != "" or value.open_start or not value.open_end
)


def trees(leaves: st.SearchStrategy[Comparison]) -> st.SearchStrategy[Node]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(Not, inner),
            st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
            st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        ),
        max_leaves=8,
    )


@given(
    trees(st.builds(Comparison, st.lists(names, min_size=1, max_size=3).map(tuple), st.sampled_from(Operator), values))
)
@settings(max_examples=300, deadline=None)
def test_printed_filter_parses_to_itself(node: Node) -> None:
    assert parse(str(node)) == node


name_comparisons = st.builds(
    Comparison,
    st.just(("name",)),
    st.sampled_from([Operator.EQUALS, Operator.NOT_EQUALS, Operator.HAS]),
    st.builds(Value, texts, st.booleans(), st.booleans()),
) | st.builds(
    Comparison,
    st.just(("name",)),
    st.sampled_from([Operator.LESS, Operator.LESS_EQUALS, Operator.GREATER, Operator.GREATER_EQUALS]),
    st.builds(Value, texts),
)
size_comparisons = st.builds(
    Comparison,
    st.just(("size_bytes",)),
    st.sampled_from(Operator),
    st.integers(-7, 8).map(lambda number: Value(str(number))),
)
ORDERS = {
    Operator.EQUALS: operator.eq,
    Operator.LESS: operator.lt,
    Operator.LESS_EQUALS: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_EQUALS: operator.ge,
}


def holds(node: Node, row: Row) -> bool:
    """Say what the filter means, in Python."""
    match node:
        case And(parts):
            return all(holds(part, row) for part in parts)
        case Or(parts):
            return any(holds(part, row) for part in parts)
        case Not(part):
            return not holds(part, row)
        case Comparison(path, Operator.NOT_EQUALS, value):
            return not holds(Comparison(path, Operator.EQUALS, value), row)
        case Comparison(("size_bytes",), compare, value):
            compare = Operator.EQUALS if compare is Operator.HAS else compare
            return row.size is not None and bool(ORDERS[compare](row.size, int(value.text)))
        case Comparison(_, compare, value):
            return row.name is not None and name_holds(row.name, compare, value)


def name_holds(name: str, compare: Operator, value: Value) -> bool:
    if compare is Operator.HAS:
        return value.text in name
    if compare is not Operator.EQUALS:
        return bool(ORDERS[compare](name, value.text))
    if value.open_start and value.open_end:
        return value.text in name
    if value.open_start:
        return name.endswith(value.text)
    return name.startswith(value.text) if value.open_end else name == value.text


@given(node=trees(name_comparisons | size_comparisons))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_database_finds_what_the_filter_means(database: Database, node: Node) -> None:
    assert await found(database, str(node)) == [row.id for row in ROWS if holds(node, row)]
