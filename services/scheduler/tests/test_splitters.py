"""How one spec becomes an array."""

from hypothesis import given
from hypothesis import strategies as st

from khomas.api.scheduler.v1.splitter_pb2 import FileSplitter as Wire
from khomas.scheduler.intake.frozen import Frozen, Groups, Picks
from khomas.scheduler.splitters.files import FileSplitter, InputFile, by_site, divide

FILES = [InputFile(0, f"/hess/run_{n}", size, value) for n, (size, value) in enumerate([(5, "b"), (5, "a"), (9, "b")])]


def sizes(groups: Groups) -> list[int]:
    return [len(groups[index]) for index in range(len(groups))]


def test_one_file_a_job_unless_told() -> None:
    assert sizes(divide(Wire(), FILES)) == [1, 1, 1]


def test_files_of_a_job_are_limited_by_number_and_bytes() -> None:
    assert sizes(divide(Wire(files_per_job=2), FILES)) == [2, 1]
    assert sizes(divide(Wire(bytes_per_job=10), FILES)) == [2, 1]
    assert sizes(divide(Wire(bytes_per_job=1), FILES)) == [1, 1, 1]


def test_files_of_one_value_stay_together_in_the_order_of_the_first_ones() -> None:
    groups = divide(Wire(group_key="object"), FILES)
    assert [[name for _, name in groups[index]] for index in (0, 1)] == [
        ["/hess/run_0", "/hess/run_2"],
        ["/hess/run_1"],
    ]
    splitter = FileSplitter(Wire(group_key="fits.object"), groups)
    assert splitter.child(0).values == {"input": "run_0", "input_stem": "run_0", "fits_object": "b"}


def at(name: str, *sites: str) -> InputFile:
    return InputFile(0, name, sites=frozenset(sites))


def test_files_of_a_job_are_at_one_site_and_those_at_none_form_their_own() -> None:
    files = [at("/a", "lyon"), at("/b"), at("/c", "lyon", "kiel"), at("/d", "kiel"), at("/e", "lyon")]
    assert [(site, [one.name for one in some]) for site, some in by_site(files)] == [
        ("lyon", ["/a", "/c", "/e"]),
        ("kiel", ["/d"]),
        ("", ["/b"]),
    ]
    groups = divide(Wire(grouping=Wire.GROUPING_BY_SITE, files_per_job=2), files)
    assert [[name for _, name in groups[index]] for index in range(len(groups))] == [
        ["/a", "/c"],
        ["/e"],
        ["/d"],
        ["/b"],
    ]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"))), st.integers(0, 3), st.integers(0, 12), st.booleans()
)
def test_every_file_is_given_to_exactly_one_child(
    files: list[tuple[int, str]], most: int, size: int, grouped: bool
) -> None:
    inputs = [InputFile(0, f"/f{number}", bytes_, value) for number, (bytes_, value) in enumerate(files)]
    wire = Wire(files_per_job=most, bytes_per_job=size, group_key="k" if grouped else "")
    groups = divide(wire, inputs)
    given_out = [name for index in range(len(groups)) for _, name in groups[index]]
    assert sorted(given_out) == sorted(one.name for one in inputs)
    assert all(number > 0 and (not most or number <= most) for number in sizes(groups))


@given(st.sets(st.integers(0, 60)))
def test_picks_are_the_indices_that_were_chosen(indices: set[int]) -> None:
    picks = Picks.of(sorted(indices))
    assert [picks[position] for position in range(len(picks))] == sorted(indices)


def test_frozen_comes_back_from_the_database() -> None:
    frozen = Frozen({1: ["/a", "/b"]}, Groups([(0, "/c")], [0], ["x"]), Picks.of([1, 2, 7]))
    assert Frozen.unpack(frozen.pack()) == frozen
    assert Frozen().pack() == b""
