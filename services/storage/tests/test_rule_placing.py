"""Where copies go, as values."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from khomas.api.storage.v1 import rule_pb2 as pb
from khomas.storage.rules.placing import Copy, CopyState, Located, Place, Placer, Wish, planned

NAMES = tuple("abcdef")
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def located(*there: str, size_bytes: int = 10) -> Located:
    return Located("uid", "/f", size_bytes, frozenset(there))


def places(**changes: Place) -> Placer:
    return Placer([Place("a", "x"), Place("b", "x"), Place("c", "y"), *changes.values()])


def test_copy_that_is_there_is_taken_before_a_new_one_is_made() -> None:
    plan = planned(located("b"), [], Wish(1), places())

    assert [(copy.storage_element, copy.state) for copy in plan.kept] == [("b", CopyState.OK)]


def test_second_copy_goes_to_another_site() -> None:
    plan = planned(located("a"), [], Wish(2), places())

    assert [copy.storage_element for copy in plan.kept] == ["a", "c"]


def test_space_times_weight_decides_among_equals() -> None:
    some = [Place("a", "x", free_bytes=100), Place("b", "y", free_bytes=60, weight=2), Place("c", "z", free_bytes=90)]

    plan = planned(located("elsewhere"), [], Wish(1), Placer(some))

    assert plan.kept[0].storage_element == "b"


def test_full_place_is_not_chosen_and_space_is_promised_once() -> None:
    placer = Placer([Place("a", free_bytes=15), Place("b", free_bytes=12)])

    chosen = [planned(Located(f"{n}", f"/{n}", 10, frozenset("z")), [], Wish(1), placer).kept[0] for n in range(3)]

    assert [copy.storage_element for copy in chosen] == ["a", "b", ""]
    assert chosen[2].reason == pb.COPY_REASON_NO_SPACE


def test_reason_says_what_is_missing() -> None:
    def reason(placer: Placer, file: Located, *copies: Copy, wanted: int = 1) -> int:
        return planned(file, copies, Wish(wanted), placer).kept[-1].reason

    refused = Copy("uid", 0, "/f", 10, refused="a,b,c")
    assert reason(Placer([]), located("z")) == pb.COPY_REASON_NO_ELEMENT
    assert reason(Placer([Place("a", takes_files=False)]), located("z")) == pb.COPY_REASON_NO_ELEMENT
    assert reason(Placer([Place("a")]), located("a"), wanted=2) == pb.COPY_REASON_TOO_FEW_ELEMENTS
    assert reason(places(), located()) == pb.COPY_REASON_NO_SOURCE
    assert reason(places(), located("z"), refused) == pb.COPY_REASON_TRANSFERS_FAILED


def test_files_that_belong_together_go_where_most_of_them_are_and_all_fit() -> None:
    some = [Place("a", "x", free_bytes=50), Place("b", "y", free_bytes=500), Place("c", "z", free_bytes=500)]

    assert Placer(some).group(2, 100, {"c": 30, "a": 10}) == ["c", "b"]


def test_copy_on_a_drained_element_is_kept_until_the_other_one_is_there() -> None:
    drained = Placer([Place("a", draining=True, takes_files=False), Place("b")])
    before = Copy("uid", 0, "/f", 10, "a", state=CopyState.OK)

    moving = planned(located("a"), [before], Wish(1), drained).kept[0]
    arrived = planned(located("a", "b"), [moving], Wish(1), drained).kept[0]

    assert (moving.moving_from, moving.storage_element, moving.state) == ("a", "b", CopyState.REPLICATING)
    assert (arrived.moving_from, arrived.storage_element, arrived.state) == ("", "b", CopyState.OK)


def test_copy_stays_when_the_drain_is_taken_back() -> None:
    moving = Copy("uid", 0, "/f", 10, "b", moving_from="a", state=CopyState.REPLICATING)

    copy = planned(located("a"), [moving], Wish(1), places()).kept[0]

    assert (copy.storage_element, copy.moving_from, copy.state) == ("a", "", CopyState.OK)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Located, list[Copy], Wish, Placer]:
    """Anything that may happen to a file that a rule has looked at before, by the rule's own hand."""
    some = [
        Place(
            name,
            draw(st.sampled_from("xyz")),
            draw(st.integers(1, 3)),
            draw(st.none() | st.integers(0, 30)),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.booleans()),
        )
        for name in draw(st.sets(st.sampled_from(NAMES)))
    ]
    wanted = draw(st.integers(1, 4))
    before = located(*draw(st.sets(st.sampled_from(NAMES), max_size=4)))
    copies = list(planned(before, [], Wish(wanted), Placer([Place(name) for name in NAMES])).kept)
    after = located(*draw(st.sets(st.sampled_from(NAMES), max_size=5)))
    return after, copies, Wish(draw(st.integers(1, 4))), Placer(some)


def protected(copies: list[Copy] | tuple[Copy, ...]) -> set[str]:
    return {copy.storage_element for copy in copies} | {copy.moving_from for copy in copies} - {""}


@patient
@given(situations())
def test_good_copies_that_are_protected_never_become_fewer_than_wanted(
    situation: tuple[Located, list[Copy], Wish, Placer],
) -> None:
    file, copies, wish, placer = situation

    plan = planned(file, copies, wish, placer)

    before = protected(copies) & file.there
    assert len(protected(plan.kept) & file.there) >= min(len(before), wish.copies)


@patient
@given(situations())
def test_each_copy_has_an_element_of_its_own(situation: tuple[Located, list[Copy], Wish, Placer]) -> None:
    file, copies, wish, placer = situation

    plan = planned(file, copies, wish, placer)

    chosen = [copy.storage_element for copy in plan.kept if copy.storage_element]
    assert len(plan.kept) == wish.copies
    assert len(set(chosen)) == len(chosen)


@patient
@given(situations())
def test_copy_is_called_there_only_where_it_is(situation: tuple[Located, list[Copy], Wish, Placer]) -> None:
    file, copies, wish, placer = situation

    plan = planned(file, copies, wish, placer)

    assert all(copy.storage_element in file.there for copy in plan.kept if copy.state == CopyState.OK)
    assert all(copy.reason for copy in plan.kept if copy.state == CopyState.STUCK)


@patient
@given(situations())
def test_looking_again_changes_nothing(situation: tuple[Located, list[Copy], Wish, Placer]) -> None:
    file, copies, wish, placer = situation
    once = planned(file, copies, wish, placer)

    again = planned(file, once.kept, wish, placer)

    settled = [copy for copy in once.kept if copy.state in (CopyState.OK, CopyState.REPLICATING)]
    assert {copy for copy in again.kept if copy in settled} == set(settled)
    assert not again.dropped
