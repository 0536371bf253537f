"""Whose turn it is on a lane."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from khomas.storage.transfers.turns import cost, dealt, ends, lane, weight

MIB = 1024 * 1024


def wish(share: str = "mc", priority: int = 0, size_bytes: int = 0, lane: str = "a>b") -> dict[str, Any]:
    return {"share": share, "priority": priority, "size_bytes": size_bytes, "lane": lane}


def served(rows: list[dict[str, Any]], turns: list[float]) -> list[dict[str, Any]]:
    return [
        row
        for _, _, row in sorted((turn, number, row) for number, (turn, row) in enumerate(zip(turns, rows, strict=True)))
    ]


def test_accounts_take_turns_however_much_each_has_queued() -> None:
    rows = [wish("mc")] * 100 + [wish("user")] * 5

    first = served(rows, dealt(rows, {}, {}))[:10]

    assert Counter(row["share"] for row in first) == {"mc": 5, "user": 5}


def test_weights_are_kept() -> None:
    rows = [wish("mc")] * 40 + [wish("user")] * 40

    first = served(rows, dealt(rows, {}, {"mc": 3.0}))[:40]

    assert Counter(row["share"] for row in first) == {"mc": 30, "user": 10}


def test_who_comes_late_does_not_wait_for_what_others_queued_before() -> None:
    known: dict[tuple[str, str], float] = {}
    before = dealt([wish("mc")] * 1000, known, {})
    known["a>b", ""] = before[99]

    (late,) = dealt([wish("user")], known, {})

    assert sum(turn < late for turn in before[100:]) <= 1


def test_who_was_away_gets_nothing_back_for_it() -> None:
    known = {("a>b", ""): 500.0}

    (turn,) = dealt([wish()], known, {})

    assert turn == 501


def test_high_priority_goes_first_and_the_others_are_not_left_out_for_ever() -> None:
    rows = [wish(priority=0)] * 10 + [wish(priority=30)] * 100

    order = served(rows, dealt(rows, {}, {}))

    assert [row["priority"] for row in order[:7]] == [30] * 7
    assert 0 in [row["priority"] for row in order[:20]]


def test_large_files_cost_more_turns() -> None:
    assert cost(160 * MIB) == 11 * cost(0)


def test_lanes_do_not_know_of_each_other() -> None:
    known: dict[tuple[str, str], float] = {}
    dealt([wish(lane="a>b")] * 10, known, {})

    assert dealt([wish(lane="a>c")], known, {}) == [1]


def test_name_of_a_lane_tells_its_ends() -> None:
    assert ends(lane("a", "b")) == ("a", "b")
    assert ends(lane("", "b")) == ("", "b")


def test_priorities_beyond_the_extremes_count_as_those() -> None:
    assert weight(1000, 1) == weight(100, 1) == 1 / weight(-100, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-30, 30), st.integers(0, 2**40)), max_size=50))
def test_each_account_keeps_its_own_order(wishes: list[tuple[str, int, int]]) -> None:
    rows = [wish(share, priority, size) for share, priority, size in wishes]

    turns = dealt(rows, {}, {"a": 2.0})

    for share, priority in {(row["share"], row["priority"]) for row in rows}:
        own = [
            turn for turn, row in zip(turns, rows, strict=True) if (row["share"], row["priority"]) == (share, priority)
        ]
        assert own == sorted(own)
        assert all(turn > 0 for turn in own)
