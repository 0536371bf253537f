"""Regular expressions that may take for ever."""

import asyncio

from khomas.kit.patterns import Found, search

SLOW = "(a|a)*b"


async def test_answers_tell_named_groups() -> None:
    found = await search([(r"run_(?P<run>\d+)(?P<part>_\d)?", "/data/run_0042.fits"), ("x", "y")])

    assert found == [Found(there=True, groups={"run": "0042", "part": None}), Found(there=False)]


async def test_bytes_are_searched_too() -> None:
    [found] = await search([(rb"caf(?P<last>.)", b"caf\xe9")])

    assert found.groups == {"last": b"\xe9"}


async def test_slow_pattern_is_given_up_and_the_others_are_answered() -> None:
    found = await search([("a", "a"), (SLOW, "a" * 40), ("b", "b")], seconds=0.5)

    assert [(one.there, one.answered) for one in found] == [(True, True), (False, False), (True, True)]


async def test_nobody_waits_for_a_slow_pattern() -> None:
    searching = asyncio.create_task(search([(SLOW, "a" * 40)], seconds=0.5))
    turns = 0
    while not searching.done():
        await asyncio.sleep(0.01)
        turns += 1

    assert turns > 10


async def test_pattern_that_was_slow_once_is_not_searched_for_again() -> None:
    found = await search([(SLOW, "a" * 40), (SLOW, "ab")])

    assert [one.answered for one in found] == [False, False]


async def test_all_patterns_together_have_a_limit_too() -> None:
    async with asyncio.timeout(60):
        found = await search([(f"{SLOW}{number}", "a" * 40) for number in range(1000)], seconds=0.5, in_all=1.0)

    assert not any(one.answered for one in found)


async def test_what_is_no_pattern_is_not_found() -> None:
    found = await search([("[", "["), ("a", "a")])

    assert [(one.there, one.answered) for one in found] == [(False, False), (True, True)]


async def test_many_questions_are_answered_in_their_order() -> None:
    found = await search([(r"(?P<n>\d+)", f"file {number}") for number in range(10_000)])

    assert [one.groups["n"] for one in found] == [str(number) for number in range(10_000)]


async def test_nothing_is_asked_of_nobody() -> None:
    assert await search(list[tuple[str, str]]()) == []
