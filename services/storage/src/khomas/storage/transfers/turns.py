"""Whose turn it is on a lane: accounts in the proportion of their weights, however much each of them queues.

Weighted fair queueing. Every lane has a clock that shows the turn it has come to. A new transfer gets a turn behind the
last one of its account and priority, at least that of the clock, as far away as it costs, divided by its weight. So the
order stands in an index when a transfer is queued, a claim reads the first ones of it, and nobody waits for ever:
a high priority makes turns come quicker, but they come after those that are due already.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.database import in_values, rows_table
from khomas.storage.links.tables import turn

# What a file costs besides its bytes, in bytes.
_FILE_BYTES: Final = 16 * 1024 * 1024
_DOUBLING: Final = 10
_EXTREME: Final = 100
# The share under which the clock of a lane is kept.
_CLOCK: Final = ""


def lane(source: str, destination: str) -> str:
    """Return the lane of a link; the source is empty while none is chosen."""
    return f"{source}>{destination}"


def ends(name: str) -> tuple[str, str]:
    """Return source and destination of a lane."""
    source, _, destination = name.rpartition(">")
    return source, destination


def cost(size_bytes: int) -> float:
    """Return how much of a lane a file takes; 1 is a small one."""
    return 1 + size_bytes / _FILE_BYTES


def weight(priority: int, share: float) -> float:
    """Return what a cost is divided by."""
    return share * float(2 ** (max(-_EXTREME, min(priority, _EXTREME)) / _DOUBLING))


def dealt(
    rows: Sequence[Mapping[str, Any]], known: MutableMapping[tuple[str, str], float], weights: Mapping[str, float]
) -> list[float]:
    """Return the turn of each row in its lane; `known` has clocks and last turns, and learns the new ones."""
    turns = []
    for row in rows:
        key = (row["lane"], _account(row))
        begin = max(known.get((row["lane"], _CLOCK), 0.0), known.get(key, 0.0))
        known[key] = begin + cost(row["size_bytes"]) / weight(row["priority"], weights.get(row["share"], 1.0))
        turns.append(known[key])
    return turns


async def deal(connection: AsyncConnection, rows: Sequence[dict[str, Any]], weights: Mapping[str, float]) -> None:
    """Set the turns of new rows, and remember these; two statements."""
    if not rows:
        return
    lanes = {row["lane"] for row in rows}
    shares = {_CLOCK, *map(_account, rows)}
    query = select(turn).where(in_values(turn.c.lane, lanes), in_values(turn.c.share, shares))
    known = {(row.lane, row.share): row.turn for row in (await connection.execute(query)).all()}
    turns = dealt(rows, known, weights)
    used = {(row["lane"], _account(row)) for row in rows}
    await advance(connection, {key: known[key] for key in used})
    for row, one in zip(rows, turns, strict=True):
        row["turn"] = one


async def come_to(connection: AsyncConnection, clocks: Mapping[str, float]) -> None:
    """Put the clocks of lanes forward."""
    await advance(connection, {(name, _CLOCK): time for name, time in clocks.items()})


async def advance(connection: AsyncConnection, turns: Mapping[tuple[str, str], float]) -> None:
    """Note turns by lane and share; none ever goes back."""
    if not turns:
        return
    types = {name: turn.c[name].type for name in ("lane", "share", "turn")}
    new = rows_table(connection, types, [(*key, value) for key, value in sorted(turns.items())])
    on_postgresql = connection.dialect.name == "postgresql"
    insert = (postgresql.insert if on_postgresql else sqlite.insert)(turn)
    latest = func.greatest if on_postgresql else func.max
    statement = insert.from_select(list(types), select(*[new.c[name] for name in types]).where(new.c.turn.is_not(None)))
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["lane", "share"], set_={"turn": latest(turn.c.turn, statement.excluded.turn)}
        )
    )


def _account(row: Mapping[str, Any]) -> str:
    return f"{row['priority']} {row['share']}"
