"""Which StorageElements an expression means, and what is said of one that cannot be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from khomas.api.storage.v1 import storage_element_pb2
from khomas.storage.errors import ExpressionInvalid
from khomas.storage.rules.expressions import check_words, parse

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DISK, TAPE = storage_element_pb2.StorageElement.MEDIA_DISK, storage_element_pb2.StorageElement.MEDIA_TAPE


@dataclass(frozen=True)
class Element:
    id: str
    site: str = ""
    media: int = DISK
    labels: Mapping[str, str] = field(default_factory=dict)


ALL = (
    Element("hd-disk", "hd", labels={"tier": "1"}),
    Element("hd-tape", "hd", TAPE, {"archive": "yes"}),
    Element("lyon-disk", "lyon", labels={"tier": "1", "scratch": "yes"}),
    Element("local"),
)


def meant(text: str) -> list[str]:
    node = parse(text)
    return [element.id for element in ALL if node.matches(element)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("*", ["hd-disk", "hd-tape", "lyon-disk", "local"]),
        ("local", ["local"]),
        ("hd-*", ["hd-disk", "hd-tape"]),
        ("site=hd", ["hd-disk", "hd-tape"]),
        ("media=tape", ["hd-tape"]),
        ("id = *-disk", ["hd-disk", "lyon-disk"]),
        ("tier=1", ["hd-disk", "lyon-disk"]),
        ("archive", ["hd-tape"]),
        ("site=hd & media=DISK", ["hd-disk"]),
        ("hd-tape | local", ["hd-tape", "local"]),
        ("media=DISK - scratch", ["hd-disk", "local"]),
        ("!media=DISK", ["hd-tape"]),
        ("!!local", ["local"]),
        ("local | tier=1 & site=hd", ["hd-disk", "local"]),
        ("(local | tier=1) & site=hd", ["hd-disk"]),
        ("* - site=hd - local", ["lyon-disk"]),
        ("* -(hd-disk|local)", ["hd-tape", "lyon-disk"]),
    ],
)
def test_expression_means_these(text: str, ids: list[str]) -> None:
    assert meant(text) == ids


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("site=", 5),
        ("a & ", 4),
        ("(a | b", 6),
        ("a b", 2),
        ("a + b", 2),
        ("a)", 1),
        ("& a", 0),
        ("a = = b", 4),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_position(text: str, position: int) -> None:
    with pytest.raises(ExpressionInvalid) as caught:
        parse(text)

    assert caught.value.metadata["position"] == str(position)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("hd-disc", "hd-disk"), ("site=lyion", "lyon"), ("teir=1", "tier"), ("site=hd & colour=red", "site")],
)
def test_word_that_means_nothing_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(ExpressionInvalid) as caught:
        check_words(text, ALL)

    assert nearest in caught.value.message


def test_parentheses_that_never_end_are_refused() -> None:
    with pytest.raises(ExpressionInvalid, match="nested"):
        parse("(" * 1000)


Meaning = tuple[str, Callable[[Element], bool]]
LEAVES: list[Meaning] = [
    ("local", lambda one: one.id == "local"),
    ("hd-*", lambda one: one.id.startswith("hd-")),
    ("site=lyon", lambda one: one.site == "lyon"),
    ("media=DISK", lambda one: one.media == DISK),
    ("scratch", lambda one: "scratch" in one.labels),
]


def either(pair: tuple[Meaning, Meaning]) -> Meaning:
    (left, is_left), (right, is_right) = pair
    return f"({left} | {right})", lambda one: is_left(one) or is_right(one)


def both(pair: tuple[Meaning, Meaning]) -> Meaning:
    (left, is_left), (right, is_right) = pair
    return f"({left} & {right})", lambda one: is_left(one) and is_right(one)


def without(pair: tuple[Meaning, Meaning]) -> Meaning:
    (left, is_left), (right, is_right) = pair
    return f"({left} - {right})", lambda one: is_left(one) and not is_right(one)


def others(meaning: Meaning) -> Meaning:
    text, is_it = meaning
    return f"!{text}", lambda one: not is_it(one)


def larger(inner: st.SearchStrategy[Meaning]) -> st.SearchStrategy[Meaning]:
    pairs = st.tuples(inner, inner)
    return st.one_of(pairs.map(either), pairs.map(both), pairs.map(without), inner.map(others))


@patient
@given(st.recursive(st.sampled_from(LEAVES), larger, max_leaves=12))
def test_expression_means_what_its_parts_mean(meaning: Meaning) -> None:
    text, is_it = meaning

    assert meant(text) == [one.id for one in ALL if is_it(one)]


@patient
@given(st.text(alphabet="ab1=&|()!-* .é", max_size=30))
def test_any_text_is_read_or_refused_with_a_position_in_it(text: str) -> None:
    try:
        parse(text)
    except ExpressionInvalid as error:
        position = int(error.metadata["position"])
    else:
        position = 0

    assert 0 <= position <= len(text)
